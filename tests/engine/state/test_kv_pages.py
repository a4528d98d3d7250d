"""Pages and lanes are conserved, and belong to one sequence each."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from control_plane.engine.state.kv_pages import KVPages
from control_plane.engine.state.sequence import Sequence
from tests.support.scheduling import make_sequence

PAGE_SIZE = 4


class Pages(RuleBasedStateMachine):
    """Sequences start, grow and end. The test keeps the number of tokens that each has room for."""

    @initialize(num_pages=st.integers(1, 12), num_lanes=st.integers(1, 5))
    def open(self, num_pages: int, num_lanes: int) -> None:
        self.pages = KVPages(num_pages, PAGE_SIZE, num_lanes)
        self.room: dict[Sequence, int] = {}

    def pick(self, number: int) -> Sequence:
        return list(self.room)[number % len(self.room)]

    def allocate(self, sequence: Sequence, num_tokens: int) -> None:
        if self.pages.missing(sequence, num_tokens) <= self.pages.num_free_pages:
            self.pages.allocate(sequence, num_tokens)
            self.room[sequence] = max(num_tokens, self.room.get(sequence, 0))

    @precondition(lambda self: self.pages.num_free_lanes)
    @rule(num_tokens=st.integers(1, 30))
    def come(self, num_tokens: int) -> None:
        self.allocate(make_sequence(1), num_tokens)

    @precondition(lambda self: self.room)
    @rule(number=st.integers(0, 4), num_tokens=st.integers(1, 50))
    def grow(self, number: int, num_tokens: int) -> None:
        self.allocate(self.pick(number), num_tokens)

    @precondition(lambda self: self.room)
    @rule(number=st.integers(0, 4))
    def hand_over(self, number: int) -> None:
        sequence, heir = self.pick(number), make_sequence(1)
        lane = self.pages.lane(sequence)
        self.pages.hand_over(sequence, heir)
        self.room[heir] = self.room.pop(sequence)
        assert self.pages.lane(heir) == lane
        assert not self.pages.holds(sequence)

    @precondition(lambda self: self.room)
    @rule(number=st.integers(0, 4))
    def free(self, number: int) -> None:
        sequence = self.pick(number)
        del self.room[sequence]
        lane = self.pages.lane(sequence)
        assert self.pages.free(sequence) == lane
        assert self.pages.free(sequence) is None
        assert not self.pages.holds(sequence)
        assert self.pages.held(sequence) == 0

    @invariant()
    def pages_are_free_or_held(self) -> None:
        held = {sequence: self.pages.held(sequence) for sequence in self.room}
        assert held == {sequence: -(-room // PAGE_SIZE) for sequence, room in self.room.items()}
        assert 0 <= self.pages.num_free_pages == self.pages.num_pages - sum(held.values())

    @invariant()
    def lanes_are_free_or_one_sequences(self) -> None:
        lanes = {self.pages.lane(sequence) for sequence in self.room}
        assert lanes <= set(range(self.pages.num_lanes))
        assert len(lanes) == len(self.room) == self.pages.num_lanes - self.pages.num_free_lanes

    def teardown(self) -> None:
        for sequence in self.room:
            self.pages.free(sequence)
        assert self.pages.num_free_pages == self.pages.num_pages
        assert self.pages.num_free_lanes == self.pages.num_lanes


TestPages = Pages.TestCase
TestPages.settings = settings(max_examples=60, stateful_step_count=30)


@pytest.mark.parametrize(("num_tokens", "num_pages"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_pages_for_tokens(num_tokens: int, num_pages: int) -> None:
    pages = KVPages(5, PAGE_SIZE, 1)
    assert pages.pages_for(num_tokens) == num_pages
    assert pages.missing(make_sequence(1), num_tokens) == num_pages


def test_a_sequence_keeps_its_lane_and_its_pages() -> None:
    pages = KVPages(5, PAGE_SIZE, 3)
    first, second = make_sequence(1), make_sequence(1)
    pages.allocate(first, 5)
    pages.allocate(second, 1)
    lane = pages.lane(first)
    assert [pages.missing(first, num_tokens) for num_tokens in (3, 8, 9, 16)] == [0, 0, 1, 2]
    pages.allocate(first, 9)
    pages.allocate(first, 2)
    assert (pages.lane(first), pages.held(first), pages.num_free_pages) == (lane, 3, 1)
    assert pages.lane(second) != lane


def test_freeing_a_sequence_that_holds_nothing() -> None:
    pages = KVPages(2, PAGE_SIZE, 1)
    assert pages.free(make_sequence(1)) is None
    assert (pages.num_free_pages, pages.num_free_lanes) == (2, 1)
    assert pages.num_tokens == 8

"""Stop strings end a text at the same place, however it is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.api.text.stop_strings import StopStrings


def through(
    stops: list[str], pieces: list[str], *, include: bool = False, immune: int = 0
) -> tuple[str, bool]:
    """The text that is released for the pieces, and whether a stop string ended it.

    The text may not end in the first `immune` pieces.
    """
    matcher = StopStrings(stops, include)
    emitted = ""
    for number, piece in enumerate(pieces):
        text, stopped = matcher.add(piece, number >= immune)
        emitted += text
        if stopped:
            return emitted, True
    return emitted + matcher.finish(), matcher.stopped


@given(
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
    st.lists(st.text("abc", max_size=4), max_size=12),
)
def test_the_text_ends_before_the_first_stop_string(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    places = [text.find(stop) for stop in stops if stop in text]
    expected = text[: min(places)] if places else text
    assert through(stops, pieces) == (expected, bool(places))


@given(
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
    st.lists(st.text("abc", max_size=4), max_size=12),
    st.integers(0, 12),
    st.booleans(),
)
def test_the_first_stop_string_that_ends_late_enough(
    stops: list[str], pieces: list[str], immune: int, include: bool
) -> None:
    """As in vLLM, a stop string counts if it ends in a piece that may end the text, wherever it begins."""
    text, least = "".join(pieces), len("".join(pieces[:immune]))
    spans = [
        (start, start + len(stop))
        for stop in stops
        for start in range(len(text))
        if text.startswith(stop, start) and start + len(stop) > least
    ]
    expected = text[: min(spans)[include]] if spans else text
    assert through(stops, pieces, include=include, immune=immune) == (expected, bool(spans))


@given(st.lists(st.text("ab", min_size=1, max_size=5), max_size=4), st.text("abc", max_size=20))
def test_only_a_possible_start_of_a_stop_string_is_held_back(stops: list[str], text: str) -> None:
    matcher = StopStrings(stops)
    emitted = "".join(matcher.add(character)[0] for character in text)
    held = text[len(emitted) :]
    if not any(stop in text for stop in stops):
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "emitted"),
    [
        ([], ["a", "b"], ["a", "b"]),
        (["\n\n"], ["a\n", "b\n", "\nc"], ["a", "\nb", ""]),
        (["END"], ["the E", "N", "E", "ND"], ["the ", "", "EN", ""]),
        (["é"], ["caf", "é"], ["caf", ""]),
        (["bc", "abcd"], ["abc", "e"], ["", "a"]),
        (["bc", "abcd"], ["abc", "d"], ["", ""]),
    ],
)
def test_the_text_released_by_each_piece(stops: list[str], pieces: list[str], emitted: list[str]) -> None:
    matcher = StopStrings(stops)
    assert [matcher.add(piece)[0] for piece in pieces] == emitted


def test_text_held_back_is_released_at_the_end() -> None:
    matcher = StopStrings(["END"])
    assert matcher.add("the EN") == ("the ", False)
    assert (matcher.finish(), matcher.stopped) == ("EN", False)


def test_the_stop_string_that_was_found_is_known() -> None:
    matcher = StopStrings(["never", "END"])
    assert (matcher.add("the EN"), matcher.found) == (("the ", False), "")
    assert (matcher.add("D"), matcher.found) == (("", True), "END")

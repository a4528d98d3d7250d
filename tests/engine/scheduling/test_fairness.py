"""Cases of virtual token counters, and tenants' service by a scheduler against the paper's bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.engine.scheduling.fairness import (
    OUTPUT_COST,
    PROMPT_COST,
    VirtualTokenCounters,
    interleave,
)
from control_plane.engine.state.sequence import Sequence
from tests.support.scheduling import PAGE, Simulation, advance, make_scheduler, make_sequence

pytestmark = pytest.mark.slow


def counters(**service: float) -> VirtualTokenCounters:
    """Counters of tenants with this service, none of which has stopped waiting yet."""
    made = VirtualTokenCounters()
    for tenant, cost in service.items():
        made.charge(tenant, cost, 1.0)
    return made


@pytest.mark.parametrize(
    ("service", "last", "waiting", "lifted"),
    [
        pytest.param({}, None, [], 0, id="the first of all"),
        pytest.param({"a": 5, "b": 3}, None, ["a", "b"], 3, id="to the least of the waiting"),
        pytest.param({"a": 5, "b": 3}, None, ["a"], 5, id="not to one that does not wait"),
        pytest.param({"a": 5, "b": 3}, "b", ["a"], 5, id="nor to the last one, while another waits"),
        pytest.param({"a": 5, "b": 3}, "b", [], 3, id="to the last one that did, when nobody does"),
        pytest.param({"a": 5, "new": 7}, None, ["a"], 7, id="never down"),
        pytest.param({"a": 5, "new": 7}, "a", [], 7, id="nor when nobody waits"),
        pytest.param({"new": 7}, "new", [], 7, id="its own is the last one"),
    ],
)
def test_lift(service: dict[str, float], last: str | None, waiting: list[str], lifted: float) -> None:
    made = counters(**service)
    if last:
        made.stops_waiting(last)
    made.begins_to_wait("new", waiting)
    assert made["new"] == lifted
    assert {tenant: made[tenant] for tenant in service if tenant != "new"} == {
        tenant: cost for tenant, cost in service.items() if tenant != "new"
    }


def test_weights() -> None:
    made = VirtualTokenCounters()
    made.charge("light", 6, 1.0)
    made.charge("heavy", 6, 2.0)
    made.charge("heavy", 2, 2.0)
    assert (made["light"], made["heavy"], made["unknown"]) == (6, 4, 0)


def test_an_idle_tenant_saves_up_no_service() -> None:
    made = counters(busy=10, idle=10)
    made.charge("busy", 990, 1.0)
    made.begins_to_wait("idle", ["busy"])
    assert made["idle"] == 1000


def test_service_since_it_stopped_waiting_counts() -> None:
    made = counters(a=10)
    made.stops_waiting("a")
    made.charge("a", 5, 1.0)
    made.retain([])
    made.begins_to_wait("new", [])
    assert made["new"] == 15


COSTS = st.dictionaries(st.sampled_from("abcde"), st.integers(0, 20))


@given(service=COSTS, last=st.sampled_from("abcde"), here=st.sets(st.sampled_from("abcd")), data=st.data())
def test_leaving_and_returning_gains_no_service(
    service: dict[str, float], last: str, here: set[str], data: st.DataObject
) -> None:
    waiting = sorted(data.draw(st.sets(st.sampled_from(sorted(here)))) if here else here)
    came_back = {}
    for forget in (False, True):
        made = counters(**service)
        made.stops_waiting(last)
        if forget:
            made.retain(here)
            assert {tenant: made[tenant] for tenant in here} == {
                tenant: service.get(tenant, 0) for tenant in here
            }
        made.begins_to_wait("e", waiting)
        came_back[forget] = made["e"]
    assert came_back[True] == came_back[False]


def test_tenants_that_have_gone_are_forgotten() -> None:
    """Counters no higher than a newcomer's are dropped: a long-lived server sees very many tenants."""
    made = counters(**{f"tenant{number}": number for number in range(100)})
    made.begins_to_wait("newest", ["tenant99"])
    made.stops_waiting("newest")
    made.retain([])
    assert {made[f"tenant{number}"] for number in range(100)} == {0}
    assert made["newest"] == 99


@pytest.mark.parametrize(
    ("queues", "served", "order"),
    [
        pytest.param({}, {}, "", id="nobody"),
        pytest.param({"x": "abc"}, {"x": 7}, "abc", id="one tenant, in its order"),
        pytest.param({"x": "aaa", "y": "bbb"}, {"x": 0, "y": 0}, "ababab", id="in turn"),
        pytest.param({"y": "bb", "x": "aa"}, {"x": 0, "y": 0}, "baba", id="the first of equals first"),
        pytest.param({"x": "aaa", "y": "bbb"}, {"x": 5, "y": 3}, "bbabaa", id="who has had less first"),
        pytest.param({"x": "AAA", "y": "bbbb"}, {"x": 0, "y": 0}, "AbbAbbA", id="by price"),
        pytest.param({"x": "", "y": "b"}, {"x": 0, "y": 9}, "b", id="an empty queue"),
        pytest.param({"x": "a", "y": "bbb"}, {"x": 0, "y": 0}, "abbb", id="the rest"),
    ],
)
def test_interleave(queues: dict[str, str], served: dict[str, float], order: str) -> None:
    """The price of a capital letter is 2, of any other 1."""
    assert "".join(interleave(queues, served, lambda letter: 1 + letter.isupper())) == order


MEMORY = 16 * PAGE
LONGEST = 40
BOUND = 2 * max(PROMPT_COST * LONGEST, OUTPUT_COST * MEMORY)
"""The bound on the difference in service of two waiting tenants (arXiv 2401.00588, theorem 4.4)."""

KINDS = [
    pytest.param((LONGEST, 8), (LONGEST, 8), id="alike"),
    pytest.param((LONGEST, 2), (4, 40), id="prompts against answers"),
    pytest.param((4, 40), (LONGEST, 2), id="answers against prompts"),
    pytest.param((1, 20), (LONGEST, 20), id="tiny prompts against long ones"),
]
"""Prompt and output tokens of the flooding tenant's sequences, and of the steady tenant's."""


def contest(
    flood: tuple[int, int],
    steady: tuple[int, int],
    weights: tuple[float, float] = (1.0, 1.0),
    *,
    fair: bool = True,
) -> Simulation:
    """Two tenants that both send more than they can get, one of them ten times as much as the other."""
    simulation = Simulation(make_scheduler(16, 6, MEMORY // PAGE, 12, fair=fair))
    for _ in range(60):
        simulation.add(10, "flood", *flood, weights[0])
        simulation.add(1, "steady", *steady, weights[1])
    return simulation


@pytest.mark.parametrize(("flood", "steady"), KINDS)
def test_service_of_two_that_wait_differs_within_the_bound(
    flood: tuple[int, int], steady: tuple[int, int]
) -> None:
    simulation = contest(flood, steady)
    leads = [flooding - other for flooding, other in simulation.run("steady")]
    assert simulation.backlogged("flood")
    assert min(simulation.service.values()) > 2 * BOUND
    # Between any two points in time, not from the start alone.
    assert max(leads) - min(leads) <= BOUND


def test_without_fairness_service_is_by_arrivals() -> None:
    simulation = contest((LONGEST, 8), (LONGEST, 8), fair=False)
    flooding, other = simulation.run("steady")[-1]
    assert flooding / other == pytest.approx(10, rel=0.1)
    assert flooding - other > BOUND


@pytest.mark.parametrize("weights", [(1.0, 2.0), (2.0, 1.0), (0.5, 0.25), (3.0, 1.0)])
@pytest.mark.parametrize(("flood", "steady"), KINDS)
def test_service_is_by_weight(
    flood: tuple[int, int], steady: tuple[int, int], weights: tuple[float, float]
) -> None:
    simulation = contest(flood, steady, weights)
    leads = [flooding / weights[0] - other / weights[1] for flooding, other in simulation.run("steady")]
    assert max(leads) - min(leads) <= BOUND / min(weights)
    ratio = simulation.service["flood"] / simulation.service["steady"]
    assert ratio == pytest.approx(weights[0] / weights[1], rel=0.05)


def test_a_returning_tenant_gets_its_share_and_no_more() -> None:
    """The tenant does not get the service that it missed while it had no requests."""
    simulation = contest((LONGEST, 8), (LONGEST, 8))
    simulation.run("steady")
    while any(chunk.sequence.tenant == "steady" for chunk in simulation.step()):
        pass
    before = simulation.service.copy()
    while simulation.service["flood"] - before["flood"] < 4 * BOUND:
        simulation.step()
    back = simulation.service.copy()
    simulation.add(10, "steady", LONGEST, 8)
    simulation.run("steady")
    had = {tenant: simulation.service[tenant] - back[tenant] for tenant in back}
    assert had["steady"] == pytest.approx(had["flood"], rel=0.2)


def fill(simulation: Simulation, output: int) -> None:
    """Run until the flooding tenant generates in all places of a step."""
    simulation.add(50, "flood", 10, output)
    while True:
        batch = simulation.step()
        if len(batch) == simulation.scheduler.max_sequences and all(chunk.length == 1 for chunk in batch):
            return


@pytest.mark.parametrize("num_lanes", [6, 12])
@pytest.mark.parametrize("num_pages", [12, 100])
def test_a_newcomer_is_in_the_next_step(num_lanes: int, num_pages: int) -> None:
    simulation = Simulation(make_scheduler(16, 6, num_pages, num_lanes))
    fill(simulation, output=100)
    simulation.add(1, "new", 9, 3)
    lengths = [
        {chunk.sequence.tenant: chunk.length for chunk in simulation.step()}.get("new") for _ in range(3)
    ]
    assert lengths == [9, 1, 1]


def test_without_fairness_a_newcomer_waits() -> None:
    simulation = Simulation(make_scheduler(16, 6, fair=False))
    fill(simulation, output=100)
    simulation.add(1, "new", 9, 3)
    assert all(chunk.sequence.tenant == "flood" for _ in range(100) for chunk in simulation.step())


@pytest.mark.parametrize("num_pages", [10, 100])
def test_first_come_first_served_within_a_tenant(num_pages: int) -> None:
    """The order also holds if memory is short and sequences are preempted."""
    simulation = Simulation(make_scheduler(16, 6, num_pages, 12))
    lengths = [(3, 30), (40, 2), (9, 60), (1, 9), (30, 40), (2, 1), (17, 20), (1, 5), (8, 8)] * 2
    sequences = [simulation.add(1, tenant, *each)[0] for each in lengths for tenant in ("one", "two")]
    begun: dict[str, list[Sequence]] = {"one": [], "two": []}
    while any(simulation.backlogged(tenant) for tenant in begun):
        for chunk in simulation.step():
            others = begun[chunk.sequence.tenant]
            if chunk.sequence not in others:
                others.append(chunk.sequence)
    for tenant, order in begun.items():
        assert order == [sequence for sequence in sequences if sequence.tenant == tenant]
    assert bool(simulation.scheduler.num_preemptions) == (num_pages == 10)


def test_a_tenant_that_stalls_others_and_cancels_is_charged() -> None:
    """A prompt as large as the memory is cancelled before it gets any, and sent again, many times."""
    scheduler = make_scheduler(16, 4, num_pages=8, num_lanes=8)
    scheduler.add(make_sequence(16, 1000, "running"))
    advance(scheduler)
    served = 0
    for _ in range(40):
        huge = make_sequence(7 * PAGE, 1, "huge")
        scheduler.add(huge)
        small = make_sequence(8, 1, "small")
        scheduler.add(small)
        for _ in range(3):
            served += any(chunk.sequence is small for chunk in advance(scheduler))
        scheduler.remove(huge)
        scheduler.remove(small)
    assert served > 20

"""Cases of which sequences are preempted, and properties that hold in every case."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.engine.scheduling.preemption import Holder, victims_of_admission, victims_of_growth

Holders = dict[str, Holder[str]]


def holders(**amounts: list[int]) -> Holders:
    """Holders of weight 1. An item's name is its tenant and its age: a0 is tenant a's oldest."""
    return weighted(dict.fromkeys(amounts, 1.0), **amounts)


def weighted(weights: dict[str, float], **amounts: list[int]) -> Holders:
    return {
        tenant: Holder([(f"{tenant}{age}", amount) for age, amount in enumerate(held)], weights[tenant])
        for tenant, held in amounts.items()
    }


@pytest.mark.parametrize(
    ("held", "missing", "victims"),
    [
        pytest.param(holders(a=[3]), 0, [], id="nothing is missing"),
        pytest.param(holders(a=[2, 2]), 1, ["a1"], id="the newest of the only one"),
        pytest.param(holders(a=[5], b=[2, 2]), 1, ["a0"], id="of the largest in all"),
        pytest.param(holders(a=[4], b=[3, 2]), 2, ["b1"], id="though another's single one is larger"),
        pytest.param(holders(a=[5, 1, 1], b=[3]), 2, ["a2", "a1"], id="several of one owner"),
        pytest.param(holders(a=[3, 3], b=[4]), 5, ["a1", "b0"], id="then of the largest that remains"),
        pytest.param(weighted({"a": 2, "b": 1}, a=[3, 2], b=[3]), 1, ["b0"], id="by weight"),
        pytest.param(holders(a=[1], b=[1]), 2, ["a0", "b0"], id="everything"),
    ],
)
def test_victims_of_growth(held: Holders, missing: int, victims: list[str]) -> None:
    assert victims_of_growth(held, missing) == victims


@pytest.mark.parametrize(
    ("held", "owner", "wanted", "missing", "victims"),
    [
        pytest.param(holders(b=[2, 2]), "a", 2, 0, [], id="nothing is missing"),
        pytest.param(holders(), "a", 2, 1, None, id="nobody holds anything"),
        pytest.param(holders(b=[2, 2]), "a", 2, 2, ["b1"], id="half of what there is"),
        pytest.param(holders(b=[2, 2]), "a", 3, 2, None, id="more than half"),
        pytest.param(holders(b=[2, 2, 2]), "a", 4, 4, None, id="the first may go, but the second may not"),
        pytest.param(holders(b=[4]), "a", 1, 1, None, id="the other's only one"),
        pytest.param(holders(a=[2], b=[3, 3]), "a", 1, 1, ["b1"], id="besides what it has"),
        pytest.param(holders(a=[3], b=[3, 3]), "a", 1, 1, None, id="it has enough"),
        pytest.param(holders(a=[9]), "a", 1, 1, None, id="its own stay"),
        pytest.param(holders(b=[2, 1], c=[2, 2, 2]), "a", 2, 2, ["c2"], id="the larger of two"),
        pytest.param(weighted({"b": 2}, b=[4, 4]), "a", 3, 3, None, id="twice the weight may have twice"),
        pytest.param(weighted({"b": 2}, b=[4, 4]), "a", 2, 2, ["b1"], id="but not more"),
    ],
)
def test_victims_of_admission(
    held: Holders, owner: str, wanted: int, missing: int, victims: list[str] | None
) -> None:
    assert victims_of_admission(held, owner, 1.0, wanted, missing) == victims


AMOUNTS = st.lists(st.integers(1, 9), max_size=5)
WEIGHTS = st.sampled_from([0.5, 1.0, 2.0, 3.0])


@st.composite
def held_by_some(draw: st.DrawFn) -> Holders:
    amounts = draw(st.dictionaries(st.sampled_from("abcd"), AMOUNTS.filter(bool), min_size=1))
    return weighted({tenant: draw(WEIGHTS) for tenant in amounts}, **amounts)


def amount_of(held: Holders, victims: list[str]) -> int:
    amounts = {item: amount for holder in held.values() for item, amount in holder.items}
    return sum(amounts[victim] for victim in victims)


def without(held: Holders, victims: list[str]) -> Holders:
    """The holders without the victims. Fail unless those are the newest of their tenants."""
    left = {}
    for tenant, holder in held.items():
        items = [(item, amount) for item, amount in holder.items if item not in victims]
        assert items == holder.items[: len(items)]
        left[tenant] = Holder(items, holder.weight)
    return left


@given(held=held_by_some(), data=st.data())
def test_growth_takes_what_is_missing_and_no_more(held: Holders, data: st.DataObject) -> None:
    everything = amount_of(held, [item for holder in held.values() for item, _ in holder.items])
    missing = data.draw(st.integers(1, everything))
    victims = victims_of_growth(held, missing)
    assert amount_of(held, victims[:-1]) < missing <= amount_of(held, victims)
    without(held, victims)


@given(held=held_by_some(), weight=WEIGHTS, wanted=st.integers(1, 20), data=st.data())
def test_admission_takes_what_is_missing_from_larger_owners(
    held: Holders, weight: float, wanted: int, data: st.DataObject
) -> None:
    missing = data.draw(st.integers(1, wanted))
    victims = victims_of_admission(held, "a", held["a"].weight if "a" in held else weight, wanted, missing)
    if victims is None:
        return
    assert amount_of(held, victims[:-1]) < missing <= amount_of(held, victims)
    left = without(held, victims)
    assert left.get("a") == held.get("a")
    own = held.get("a", Holder([], weight)).share(more=wanted)
    assert all(left[tenant].share() >= own for tenant in left if left[tenant] != held[tenant])


@given(held=held_by_some(), weight=WEIGHTS, wanted=st.integers(1, 20), data=st.data())
def test_a_victim_does_not_take_its_place_back(
    held: Holders, weight: float, wanted: int, data: st.DataObject
) -> None:
    """The admitted item stays, whichever victim is to be admitted next."""
    weight = held["a"].weight if "a" in held else weight
    victims = victims_of_admission(held, "a", weight, wanted, data.draw(st.integers(1, wanted)))
    if not victims:
        return
    after = without(held, victims)
    after["a"] = Holder([*after.get("a", Holder([], weight)).items, ("admitted", wanted)], weight)
    for victim in victims:
        owner = victim[0]
        amount = amount_of(held, [victim])
        for missing in range(1, amount + 1):
            taken = victims_of_admission(after, owner, after[owner].weight, amount, missing)
            assert taken is None or "admitted" not in taken

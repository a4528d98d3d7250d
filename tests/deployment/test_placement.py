"""Which gateway gets which function."""

import pytest

from control_plane.deployment.placement import Site, place
from control_plane.errors import ConfigError

SIZES = {"a": 30, "b": 20, "c": 20, "d": 10}


def site(*deployed: str, most: int | None = None, name: str = "box") -> Site:
    return Site(name, frozenset(deployed), most)


@pytest.mark.parametrize(
    ("sites", "wanted"),
    [
        ([site()], [["a", "b", "c", "d"]]),
        ([site(), site()], [["a", "d"], ["b", "c"]]),
        ([site("c", "other"), site("a")], [["b", "c"], ["a", "d"]]),
        ([site("a", "b"), site("a")], [["a", "b"], ["c", "d"]]),
        ([site(most=1), site()], [["a"], ["b", "c", "d"]]),
        ([site("other", most=1), site(most=4)], [[], ["a", "b", "c", "d"]]),
    ],
)
def test_functions_stay_and_the_others_go_where_the_least_is(
    sites: list[Site], wanted: list[list[str]]
) -> None:
    assert place(SIZES, sites) == wanted


def test_no_room_is_told_with_what_would_fit() -> None:
    sites = [site("other", "a", most=2, name="one"), site(most=2, name="two")]
    with pytest.raises(ConfigError, match=r"one and two may have 4.*`faasmoe partition --max-functions 3`"):
        place(SIZES, sites)
    with pytest.raises(ConfigError, match="remove others"):
        place(SIZES, [site("x", "y", most=2)])

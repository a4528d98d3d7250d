"""Functions are placed on gateways by size and room."""

import pytest

from control_plane.deployment.placement import GatewayCapacity, place
from control_plane.errors import ConfigError

SIZES = {"a": 30, "b": 20, "c": 20, "d": 10}


def gateway(*deployed: str, most: int | None = None, name: str = "box") -> GatewayCapacity:
    return GatewayCapacity(name, frozenset(deployed), most)


@pytest.mark.parametrize(
    ("gateways", "wanted"),
    [
        ([gateway()], [["a", "b", "c", "d"]]),
        ([gateway(), gateway()], [["a", "d"], ["b", "c"]]),
        ([gateway("c", "other"), gateway("a")], [["b", "c"], ["a", "d"]]),
        ([gateway("a", "b"), gateway("a")], [["a", "b"], ["c", "d"]]),
        ([gateway(most=1), gateway()], [["a"], ["b", "c", "d"]]),
        ([gateway("other", most=1), gateway(most=4)], [[], ["a", "b", "c", "d"]]),
    ],
)
def test_deployed_functions_stay_and_the_others_go_to_the_emptiest_gateway(
    gateways: list[GatewayCapacity], wanted: list[list[str]]
) -> None:
    assert place(SIZES, gateways) == wanted


def test_the_error_without_room_says_how_many_functions_fit() -> None:
    gateways = [gateway("other", "a", most=2, name="one"), gateway(most=2, name="two")]
    with pytest.raises(ConfigError, match=r"one and two can take 3 \(.* 4 .*`.* --max-functions 3`"):
        place(SIZES, gateways)
    with pytest.raises(ConfigError, match="remove other functions"):
        place(SIZES, [gateway("x", "y", most=2)])

"""The systems that are measured, and their memory limits."""

import pytest

from bench.memory_limit.scenarios import Scenario, plan, read_limit, read_system
from control_plane.errors import ConfigError


def test_limits_are_measured_without_prefetch_for_one_sequence() -> None:
    assert plan(["none", "5GB"], ["faasmoe", "no-prefetch"], None) == [
        Scenario("faasmoe", "none", (1, 6, 32)),
        Scenario("faasmoe", "5GB", (1, 6)),
        Scenario("no-prefetch", "5GB", (1,)),
    ]


def test_given_numbers_of_sequences_replace_the_defaults() -> None:
    assert plan(["none", "5GB"], ["no-prefetch", "faasmoe"], (6,)) == [
        Scenario("faasmoe", "none", (6,)),
        Scenario("no-prefetch", "5GB", (6,)),
        Scenario("faasmoe", "5GB", (6,)),
    ]


@pytest.mark.parametrize(("limit", "nbytes"), [("none", None), ("5GB", 5_000_000_000)])
def test_limits_are_converted_to_bytes(limit: str, nbytes: int | None) -> None:
    assert Scenario("faasmoe", read_limit(limit), (1,)).limit_bytes == nbytes


def test_unknown_limits_and_systems_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 parsecs"):
        read_limit("5 parsecs")
    with pytest.raises(ConfigError, match="vllm"):
        read_system("vllm")

"""The observer ignores lists that are out of date."""

import pytest

from control_plane.autoscaling.observer import Observer
from control_plane.faas.types import FunctionDeployment, FunctionStatus

AWAKE, ASLEEP = (FunctionStatus(FunctionDeployment("a", "image"), n, n) for n in (1, 0))


@pytest.fixture
def observer() -> Observer:
    """An observer of one function, which was awake at time 0."""
    observer = Observer(1_000_000, frozenset("a"))
    observer.observe_list([AWAKE], 0, 0)
    return observer


def replicas(observer: Observer) -> int:
    return observer.states({}, 10)["a"].replicas


def test_a_current_list_is_used(observer: Observer) -> None:
    assert replicas(observer) == 1
    observer.observe_list([ASLEEP], 1, 1)
    assert replicas(observer) == 0


def test_a_list_from_before_a_scale_to_zero_is_ignored(observer: Observer) -> None:
    observer.going_to_zero("a")
    observer.observe_list([AWAKE], 1, 2)
    assert replicas(observer) == 0
    assert not observer.is_current
    observer.scaled("a", 4)
    observer.observe_list([AWAKE], 3, 5)
    assert replicas(observer) == 0
    assert observer.any_asleep
    assert not observer.is_current
    observer.observe_list([AWAKE], 6, 7)
    assert replicas(observer) == 1
    assert observer.is_current


def test_a_list_from_before_a_wake_is_ignored(observer: Observer) -> None:
    observer.observe_list([ASLEEP], 1, 1)
    observer.waking("a", 2)
    observer.observe_list([ASLEEP], 3, 3)
    assert replicas(observer) == 1
    assert not observer.any_asleep


def test_the_last_of_two_scale_requests_counts(observer: Observer) -> None:
    observer.going_to_zero("a")
    observer.waking("a", 1)
    observer.scaled("a", 2)
    observer.observe_list([ASLEEP], 3, 3)
    assert replicas(observer) == 1


def test_a_function_that_was_deployed_again_while_it_was_scaled_is_observed(observer: Observer) -> None:
    observer.going_to_zero("a")
    observer.observe_list([], 1, 1)
    observer.observe_list([AWAKE], 2, 2)
    observer.scaled("a", 3)
    observer.observe_list([ASLEEP], 4, 4)
    assert replicas(observer) == 0
    observer.observe_list([AWAKE], 5, 5)
    assert replicas(observer) == 1

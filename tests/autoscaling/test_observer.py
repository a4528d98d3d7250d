"""What is made of lists that tell what is no longer so."""

import pytest

from control_plane.autoscaling.observer import Observer
from control_plane.faas.types import FunctionDeployment, FunctionStatus

AWAKE, ASLEEP = (FunctionStatus(FunctionDeployment("a", "image"), n, n) for n in (1, 0))


@pytest.fixture
def observer() -> Observer:
    """Of one function, which was awake at 0."""
    observer = Observer(1_000_000, frozenset("a"))
    observer.listed([AWAKE], 0, 0)
    return observer


def replicas(observer: Observer) -> int:
    return observer.states({}, 10)["a"].replicas


def test_the_gateway_is_believed(observer: Observer) -> None:
    assert replicas(observer) == 1
    observer.listed([ASLEEP], 1, 1)
    assert replicas(observer) == 0


def test_a_list_of_while_a_function_was_put_to_sleep_does_not_wake_it(observer: Observer) -> None:
    observer.going_to_zero("a")
    observer.listed([AWAKE], 1, 2)
    assert replicas(observer) == 0
    assert not observer.is_current
    observer.scaled("a", 4)
    observer.listed([AWAKE], 3, 5)
    assert replicas(observer) == 0
    assert observer.any_asleep
    assert not observer.is_current
    observer.listed([AWAKE], 6, 7)
    assert replicas(observer) == 1
    assert observer.is_current


def test_a_list_of_while_a_function_was_woken_does_not_put_it_to_sleep(observer: Observer) -> None:
    observer.listed([ASLEEP], 1, 1)
    observer.waking("a", 2)
    observer.listed([ASLEEP], 3, 3)
    assert replicas(observer) == 1
    assert not observer.any_asleep


def test_the_last_of_two_scalings_counts(observer: Observer) -> None:
    observer.going_to_zero("a")
    observer.waking("a", 1)
    observer.scaled("a", 2)
    observer.listed([ASLEEP], 3, 3)
    assert replicas(observer) == 1


def test_one_that_is_deployed_anew_while_it_was_scaled_is_looked_at_again(observer: Observer) -> None:
    observer.going_to_zero("a")
    observer.listed([], 1, 1)
    observer.listed([AWAKE], 2, 2)
    observer.scaled("a", 3)
    observer.listed([ASLEEP], 4, 4)
    assert replicas(observer) == 0
    observer.listed([AWAKE], 5, 5)
    assert replicas(observer) == 1

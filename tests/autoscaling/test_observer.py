"""The observer ignores lists that are out of date, and knows its own calls and the effect of scaling."""

from dataclasses import replace

import pytest

from control_plane.autoscaling.observer import COUNT_SECONDS, ZERO_SECONDS, Observer
from control_plane.autoscaling.policy import FunctionState
from control_plane.faas.statistics import FunctionStatistics
from control_plane.faas.types import FunctionDeployment, FunctionStatus

AWAKE, ASLEEP = (FunctionStatus(FunctionDeployment("a", "image"), n, n) for n in (1, 0))


@pytest.fixture
def observer() -> Observer:
    """An observer of one function, which was awake at time 0."""
    observer = Observer(1_000_000, frozenset("a"))
    observer.observe_list([AWAKE], 0, 0)
    return observer


def replicas(observer: Observer) -> int:
    return state(observer, 10).replicas


def state(observer: Observer, now: float) -> FunctionState:
    return observer.states({}, now)["a"]


def counted(calls: int) -> FunctionStatus:
    return replace(AWAKE, invocation_count=calls)


def scaled_to_zero(observer: Observer, at: float) -> None:
    observer.going_to_zero("a")
    observer.scaled("a", at)
    observer.accepted_zero("a", at)


def test_a_current_list_is_used(observer: Observer) -> None:
    assert replicas(observer) == 1
    observer.observe_list([ASLEEP], 1, 1)
    assert replicas(observer) == 0


def test_a_list_from_before_a_scale_to_zero_is_ignored(observer: Observer) -> None:
    observer.going_to_zero("a")
    observer.observe_list([AWAKE], 1, 2)
    assert replicas(observer) == 0
    assert not observer.is_settled
    observer.scaled("a", 4)
    observer.observe_list([AWAKE], 3, 5)
    assert replicas(observer) == 0
    assert observer.any_asleep
    assert not observer.is_settled
    observer.observe_list([AWAKE], 6, 7)
    assert replicas(observer) == 1
    assert observer.is_settled


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


def test_a_function_that_still_runs_some_seconds_after_a_scale_to_zero_refuses_it(observer: Observer) -> None:
    """faasd's gateway answers 200 to zero replicas, and keeps one."""
    scaled_to_zero(observer, 100)
    for now in (101, 100 + ZERO_SECONDS - 1):
        observer.observe_list([AWAKE], now, now)
        assert (state(observer, now).replicas, state(observer, now).refuses_zero) == (0, False)
        assert not observer.is_settled
    now = 100 + ZERO_SECONDS
    observer.observe_list([AWAKE], now, now)
    found = state(observer, now)
    assert (found.replicas, found.available, found.refuses_zero) == (1, True, True)
    assert found.idle_seconds == now
    assert observer.is_settled


def test_a_function_that_takes_a_while_to_end_does_not_refuse_zero(observer: Observer) -> None:
    scaled_to_zero(observer, 100)
    observer.observe_list([AWAKE], 101, 101)
    observer.observe_list([ASLEEP], 102, 102)
    assert observer.is_settled
    observer.observe_list([AWAKE], 200, 200)
    assert (state(observer, 201).refuses_zero, state(observer, 201).idle_seconds) == (False, 1)


@pytest.mark.parametrize("by_us", [True, False])
def test_a_function_that_a_call_has_woken_does_not_refuse_zero(observer: Observer, by_us: bool) -> None:
    scaled_to_zero(observer, 100)
    observer.observe_list([AWAKE], 101, 101)
    if by_us:
        observer.observe_statistics({"a": FunctionStatistics(invocations=1, last_call=5.0)}, 102, 5.0)
        observer.observe_list([AWAKE], 103, 103)
    else:
        observer.observe_list([counted(1)], 103, 103)
    assert (state(observer, 103).replicas, state(observer, 103).idle_seconds) == (1, 0)
    observer.observe_list([counted(1)], 200, 200)
    assert not state(observer, 200).refuses_zero


def test_a_wake_ends_the_wait_for_the_effect_of_a_scale_to_zero(observer: Observer) -> None:
    scaled_to_zero(observer, 100)
    observer.waking("a", 101)
    observer.scaled("a", 102)
    observer.observe_list([AWAKE], 200, 200)
    assert not state(observer, 200).refuses_zero


def test_calls_that_keep_a_function_awake_are_no_use(observer: Observer) -> None:
    observer.observe_list([counted(5)], 1, 1)
    assert observer.keeping_awake("a", 2)
    observer.observe_list([counted(6)], 10, 10)
    assert state(observer, 10).idle_seconds == 9
    # A gateway may count calls late, and several at once.
    assert observer.keeping_awake("a", 11)
    assert observer.keeping_awake("a", 12)
    observer.observe_list([counted(6)], 13, 13)
    observer.observe_list([counted(8)], 60, 60)
    assert state(observer, 60).idle_seconds == 59
    observer.observe_list([counted(9)], 61, 61)
    assert state(observer, 61).idle_seconds == 0


def test_calls_of_other_clients_beside_our_own_are_use(observer: Observer) -> None:
    observer.keeping_awake("a", 2)
    observer.observe_list([counted(2)], 10, 10)
    assert state(observer, 10).idle_seconds == 0


def test_a_call_that_is_never_counted_hides_others_for_a_limited_time(observer: Observer) -> None:
    observer.keeping_awake("a", 2)
    observer.observe_list([counted(0)], 3 + COUNT_SECONDS, 3 + COUNT_SECONDS)
    observer.observe_list([counted(1)], 100, 100)
    assert state(observer, 100).idle_seconds == 0


def test_a_function_that_sleeps_is_not_called_to_keep_it_awake(observer: Observer) -> None:
    observer.observe_list([ASLEEP], 1, 1)
    assert not observer.keeping_awake("a", 2)
    # Of an unknown function nobody knows that it sleeps.
    assert observer.keeping_awake("b", 2)


def test_functions_of_a_gateway_that_is_away_are_remembered(observer: Observer) -> None:
    observer.limited("a", 7)
    observer.observe_list([], 1, 1, {"a"})
    assert state(observer, 1).use.share == 7
    observer.observe_list([], 2, 2)
    assert observer.states({}, 2) == {}

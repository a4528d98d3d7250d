"""The condition in C does what threading.Condition does."""

import threading
import time
from collections.abc import Callable

import pytest

from functions.fast_path.shared import Condition, condition

SECONDS = 10.0
SHORT_SECONDS = 0.02


def in_python() -> Condition:
    return threading.Condition(threading.Lock())


both = pytest.mark.parametrize("make", [condition, in_python])


@both
def test_only_one_thread_at_a_time_is_in(make: Callable[[], Condition]) -> None:
    changed, counted, inside = make(), 0, 0

    def count() -> None:
        nonlocal counted, inside
        for _ in range(300):
            with changed:
                inside += 1
                assert inside == 1
                counted += 1
                inside -= 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert counted == 1200


@both
def test_whoever_waits_is_woken_and_lets_others_in(make: Callable[[], Condition]) -> None:
    changed, values, found = make(), [0], []

    def wait() -> None:
        with changed:
            found.append(changed.wait_for(lambda: values[0] == 3 and "three", SECONDS))

    thread = threading.Thread(target=wait)
    thread.start()
    while values[0] < 3:
        with changed:
            values[0] += 1
            changed.notify_all()
    thread.join(SECONDS)
    assert found == ["three"]


@both
def test_a_wait_ends_in_time(make: Callable[[], Condition]) -> None:
    changed = make()
    with changed:
        began = time.monotonic()
        assert not changed.wait(SHORT_SECONDS)
        assert not changed.wait_for(lambda: False, SHORT_SECONDS)
        assert time.monotonic() - began >= 2 * SHORT_SECONDS
        assert changed.wait_for(lambda: True, 0)


@both
def test_an_error_of_the_predicate_is_raised_and_the_condition_is_free_again(
    make: Callable[[], Condition],
) -> None:
    changed = make()
    with pytest.raises(ZeroDivisionError), changed:
        changed.wait_for(lambda: 1 // 0, SECONDS)
    with changed:
        pass

"""A trial runs steps with and without prefetching in turns, then keeps the faster way."""

import pytest

from control_plane.engine.experts.trial import KEPT_STEPS, TURN_STEPS, TURNS, Trial

TRIAL_STEPS = TURN_STEPS * TURNS


def run(trial: Trial, steps: int, rows: int, enabled: float, disabled: float) -> list[bool]:
    """Run steps that take `enabled` seconds with prefetching and `disabled` without; returns which had it."""
    done = []
    for _ in range(steps):
        done.append(trial.enabled)
        trial.record(rows, enabled if trial.enabled else disabled)
    return done


@pytest.mark.parametrize(("enabled", "disabled", "better"), [(0.9, 1.0, True), (1.0, 0.9, False)])
def test_the_faster_way_is_kept(enabled: float, disabled: float, better: bool) -> None:
    trial = Trial()
    run(trial, 1, 1, enabled, disabled)
    tried = run(trial, TRIAL_STEPS, 1, enabled, disabled)
    assert tried.count(True) == tried.count(False)
    assert run(trial, KEPT_STEPS, 1, enabled, disabled) == [better] * KEPT_STEPS


def test_a_later_trial_can_decide_otherwise() -> None:
    trial = Trial()
    run(trial, 1 + TRIAL_STEPS + KEPT_STEPS, 1, 1.0, 0.9)
    assert set(run(trial, TRIAL_STEPS, 1, 0.9, 1.0)) == {True, False}
    assert run(trial, KEPT_STEPS, 1, 0.9, 1.0) == [True] * KEPT_STEPS


def test_a_few_slow_steps_do_not_decide() -> None:
    trial = Trial()
    run(trial, 1, 1, 0.9, 1.0)
    for step in range(TRIAL_STEPS):
        late = 100.0 if step % TURN_STEPS == 0 and trial.enabled else 0.0
        trial.record(1, late + (0.9 if trial.enabled else 1.0))
    assert trial.enabled


def test_steps_with_different_numbers_of_rows_are_not_compared() -> None:
    """More rows take longer either way, so that the trial restarts when their number changes."""
    trial = Trial()
    run(trial, 1 + TURN_STEPS, 1, 0.9, 1.0)
    run(trial, 1, 6, 5.0, 5.0)
    assert run(trial, TURN_STEPS, 6, 5.0, 4.0) == [True] * TURN_STEPS
    run(trial, TRIAL_STEPS - TURN_STEPS, 6, 5.0, 4.0)
    assert not trial.enabled


def test_a_result_is_kept_while_the_number_of_rows_changes() -> None:
    trial = Trial()
    run(trial, 1 + TRIAL_STEPS, 1, 1.0, 0.9)
    for rows in (2, 3, 4):
        assert run(trial, 5, rows, 1.0, 0.9) == [False] * 5

"""With and without in turn, then whatever was faster."""

import pytest

from control_plane.engine.experts.trial import KEPT_STEPS, TURN_STEPS, TURNS, Trial

TRIAL_STEPS = TURN_STEPS * TURNS


def run(trial: Trial, steps: int, rows: int, with_it: float, without: float) -> list[bool]:
    """Whether it was done in each of these steps, which take so long with it and without it."""
    done = []
    for _ in range(steps):
        done.append(trial.enabled)
        trial.took(rows, with_it if trial.enabled else without)
    return done


@pytest.mark.parametrize(("with_it", "without", "better"), [(0.9, 1.0, True), (1.0, 0.9, False)])
def test_what_is_faster_is_kept(with_it: float, without: float, better: bool) -> None:
    trial = Trial()
    run(trial, 1, 1, with_it, without)
    tried = run(trial, TRIAL_STEPS, 1, with_it, without)
    assert tried.count(True) == tried.count(False)
    assert run(trial, KEPT_STEPS, 1, with_it, without) == [better] * KEPT_STEPS


def test_it_is_tried_again_and_then_decided_otherwise() -> None:
    trial = Trial()
    run(trial, 1 + TRIAL_STEPS + KEPT_STEPS, 1, 1.0, 0.9)
    assert set(run(trial, TRIAL_STEPS, 1, 0.9, 1.0)) == {True, False}
    assert run(trial, KEPT_STEPS, 1, 0.9, 1.0) == [True] * KEPT_STEPS


def test_single_steps_that_take_long_decide_nothing() -> None:
    trial = Trial()
    run(trial, 1, 1, 0.9, 1.0)
    for step in range(TRIAL_STEPS):
        late = 100.0 if step % TURN_STEPS == 0 and trial.enabled else 0.0
        trial.took(1, late + (0.9 if trial.enabled else 1.0))
    assert trial.enabled


def test_steps_of_other_rows_are_not_compared() -> None:
    """More rows take longer with it and without: the trial begins anew with them."""
    trial = Trial()
    run(trial, 1 + TURN_STEPS, 1, 0.9, 1.0)
    run(trial, 1, 6, 5.0, 5.0)
    assert run(trial, TURN_STEPS, 6, 5.0, 4.0) == [True] * TURN_STEPS
    run(trial, TRIAL_STEPS - TURN_STEPS, 6, 5.0, 4.0)
    assert not trial.enabled


def test_a_decision_stands_while_rows_change() -> None:
    trial = Trial()
    run(trial, 1 + TRIAL_STEPS, 1, 1.0, 0.9)
    for rows in (2, 3, 4):
        assert run(trial, 5, rows, 1.0, 0.9) == [False] * 5

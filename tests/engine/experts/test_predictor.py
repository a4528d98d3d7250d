"""Predictions of the next layer's experts, and when the predictor makes none."""

import numpy as np
import pytest
from numpy.typing import NDArray

from control_plane.engine.experts.predictor import ExpertPredictor, fitted_router

EXPERTS, TOP_K, HIDDEN = 8, 2, 16

Float32 = NDArray[np.float32]


def routed(router: Float32, hidden_states: Float32) -> np.ndarray:
    """The experts [T, K] that the router chooses."""
    return np.argsort(hidden_states @ router.T, axis=1)[:, -TOP_K:]


def one_step(predictor: ExpertPredictor, hidden_states: Float32, later: np.ndarray) -> list[int]:
    """Run a step of one tenant whose second layer calls the experts `later`; returns the prediction."""
    predictor.begin_step([("a", len(hidden_states))])
    predicted = list(predictor.experts(1, hidden_states))
    predictor.record(1, later)
    return predicted


def test_the_predictions_of_a_router_that_is_right_early_are_used() -> None:
    random = np.random.default_rng(0)
    router = random.standard_normal((EXPERTS, HIDDEN), np.float32)
    predictor = ExpertPredictor({1: router}, EXPERTS, TOP_K)
    predictions = []
    for _ in range(20):
        hidden_states = random.standard_normal((3, HIDDEN), np.float32)
        calls = routed(router, hidden_states)
        predictions.append((one_step(predictor, hidden_states, calls), set(calls.ravel().tolist())))
    assert predictions[0][0] == [], "the accuracy is not known yet"
    assert all(set(predicted) == called for predicted, called in predictions[1:])


def test_no_expert_counts_for_nothing() -> None:
    predictor = ExpertPredictor({}, EXPERTS, TOP_K)
    for _ in range(5):
        predictor.begin_step([("a", 2)])
        predicted = predictor.experts(0, np.zeros((2, HIDDEN), np.float32))
        predictor.record(0, np.array([[3, -1], [-1, -1]]))
    assert list(predicted) == [3]


def test_wrong_predictions_are_not_used() -> None:
    random = np.random.default_rng(0)
    router = random.standard_normal((EXPERTS, HIDDEN), np.float32)
    predictor = ExpertPredictor({1: router}, EXPERTS, TOP_K)
    for _ in range(20):
        hidden_states = random.standard_normal((1, HIDDEN), np.float32)
        wrong = np.argsort(hidden_states @ router.T, axis=1)[:, :TOP_K]
        assert one_step(predictor, hidden_states, wrong) == []


def test_predictions_resume_when_they_are_accurate_again() -> None:
    random = np.random.default_rng(0)
    router = random.standard_normal((EXPERTS, HIDDEN), np.float32)
    predictor = ExpertPredictor({1: router}, EXPERTS, TOP_K)
    one_step(predictor, random.standard_normal((1, HIDDEN), np.float32), np.array([[0, 1]]))
    predictions = []
    for _ in range(30):
        hidden_states = random.standard_normal((1, HIDDEN), np.float32)
        predictions.append(one_step(predictor, hidden_states, routed(router, hidden_states)))
    assert len(predictions[-1]) == TOP_K


def test_the_likeliest_expert_comes_first() -> None:
    router = np.eye(EXPERTS, HIDDEN, dtype=np.float32)
    predictor = ExpertPredictor({1: router}, EXPERTS, TOP_K)
    hidden_states = np.zeros((1, HIDDEN), np.float32)
    hidden_states[0, 5], hidden_states[0, 2] = 3.0, 1.0
    one_step(predictor, hidden_states, np.array([[5, 2]]))
    assert one_step(predictor, hidden_states, np.array([[5, 2]])) == [5, 2]


def test_the_first_layer_is_predicted_from_the_same_tenants_recent_use() -> None:
    predictor = ExpertPredictor({}, EXPERTS, TOP_K)
    nothing = np.zeros((1, HIDDEN), np.float32)
    habits = {"a": [[0, 1]], "b": [[6, 7]]}
    for _ in range(3):
        for tenant, index in habits.items():
            predictor.begin_step([(tenant, 1)])
            predictor.experts(0, nothing)
            predictor.record(0, np.array(index))
    for tenant, index in habits.items():
        predictor.begin_step([(tenant, 1)])
        assert sorted(predictor.experts(0, nothing)) == index[0]


@pytest.mark.parametrize("norm", [0.5, 1.0, 3.0])
def test_the_fitted_router_accounts_for_the_norms_of_both_layers(norm: float) -> None:
    """A layer's input is scaled by its own norm's weights, the next router's input by the next norm's."""
    random = np.random.default_rng(1)
    router, state = (
        random.standard_normal((EXPERTS, HIDDEN), np.float32),
        random.standard_normal((5, HIDDEN), np.float32),
    )
    before, after = random.random(HIDDEN, np.float32) + 0.5, random.random(HIDDEN, np.float32) * norm + 0.1
    assert np.allclose(
        (state * before) @ fitted_router(router, before, after).T, (state * after) @ router.T, atol=1e-4
    )

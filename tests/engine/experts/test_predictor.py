"""Predictions of the next layer's experts, and when the predictor makes none."""

import numpy as np
import pytest
import torch

from control_plane.engine.experts.predictor import ExpertPredictor, fitted_router

EXPERTS, TOP_K, HIDDEN = 8, 2, 16


def routed(router: torch.Tensor, hidden_states: torch.Tensor) -> np.ndarray:
    """The experts [T, K] that the router chooses."""
    return (hidden_states @ router.T).topk(TOP_K).indices.numpy()


def one_step(predictor: ExpertPredictor, hidden_states: torch.Tensor, later: np.ndarray) -> list[int]:
    """Run a step of one tenant whose second layer calls the experts `later`; returns the prediction."""
    predictor.begin_step([("a", len(hidden_states))])
    predicted = list(predictor.experts(1, hidden_states))
    predictor.record(1, later)
    return predicted


def test_the_predictions_of_a_router_that_is_right_early_are_used() -> None:
    torch.manual_seed(0)
    router = torch.randn(EXPERTS, HIDDEN)
    predictor = ExpertPredictor({1: router}, EXPERTS, TOP_K)
    predictions = []
    for _ in range(20):
        hidden_states = torch.randn(3, HIDDEN)
        calls = routed(router, hidden_states)
        predictions.append((one_step(predictor, hidden_states, calls), set(calls.ravel().tolist())))
    assert predictions[0][0] == [], "the accuracy is not known yet"
    assert all(set(predicted) == called for predicted, called in predictions[1:])


def test_wrong_predictions_are_not_used() -> None:
    torch.manual_seed(0)
    router = torch.randn(EXPERTS, HIDDEN)
    predictor = ExpertPredictor({1: router}, EXPERTS, TOP_K)
    for _ in range(20):
        hidden_states = torch.randn(1, HIDDEN)
        wrong = (hidden_states @ router.T).topk(TOP_K, largest=False).indices.numpy()
        assert one_step(predictor, hidden_states, wrong) == []


def test_predictions_resume_when_they_are_accurate_again() -> None:
    torch.manual_seed(0)
    router = torch.randn(EXPERTS, HIDDEN)
    predictor = ExpertPredictor({1: router}, EXPERTS, TOP_K)
    one_step(predictor, torch.randn(1, HIDDEN), np.array([[0, 1]]))
    predictions = []
    for _ in range(30):
        hidden_states = torch.randn(1, HIDDEN)
        predictions.append(one_step(predictor, hidden_states, routed(router, hidden_states)))
    assert len(predictions[-1]) == TOP_K


def test_the_likeliest_expert_comes_first() -> None:
    router = torch.eye(EXPERTS, HIDDEN)
    predictor = ExpertPredictor({1: router}, EXPERTS, TOP_K)
    hidden_states = torch.zeros(1, HIDDEN)
    hidden_states[0, 5], hidden_states[0, 2] = 3.0, 1.0
    one_step(predictor, hidden_states, np.array([[5, 2]]))
    assert one_step(predictor, hidden_states, np.array([[5, 2]])) == [5, 2]


def test_the_first_layer_is_predicted_from_the_same_tenants_recent_use() -> None:
    predictor = ExpertPredictor({}, EXPERTS, TOP_K)
    nothing = torch.zeros(1, HIDDEN)
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
    torch.manual_seed(1)
    router, state = torch.randn(EXPERTS, HIDDEN), torch.randn(5, HIDDEN)
    before, after = torch.rand(HIDDEN) + 0.5, torch.rand(HIDDEN) * norm + 0.1
    assert torch.allclose(
        (state * before) @ fitted_router(router, before, after).T, (state * after) @ router.T, atol=1e-4
    )

"""Biases and penalties equal those of transformers, vLLM and OpenAI."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

from control_plane.engine.model.logits import Logits, TokenCounts, add_bias, exclude, penalise
from control_plane.engine.state.sequence import SamplingParams, Sequence

VOCABULARY = 50
TOKENS = st.lists(st.integers(0, VOCABULARY - 1), max_size=150)
PENALTY = st.sampled_from([-2.0, -0.5, 0.0, 0.3, 1.1, 2.0])


def random_logits(seed: int = 0) -> Logits:
    return np.random.default_rng(seed).standard_normal(VOCABULARY, np.float32) * 3


def penalised_reference(logits: Logits, token_ids: list[int], penalty: float) -> Logits:
    """The logits [vocabulary] after transformers' repetition penalty."""
    process: Any = RepetitionPenaltyLogitsProcessor(penalty)
    scores: torch.Tensor = process(torch.tensor([token_ids]), torch.from_numpy(logits[None]))
    penalised: Logits = scores[0].numpy()
    return penalised


def expected_after(logits: Logits, sequence: Sequence) -> np.ndarray:
    """OpenAI's definition, token by token: mu[j] - c[j] * frequency - (c[j] > 0) * presence.

    vLLM applies it after the repetition penalty, which is transformers'.
    """
    params = sequence.params
    before = penalised_reference(logits, sequence.token_ids, params.repetition_penalty)
    counts = Counter(sequence.output_ids)
    return np.array(
        [
            before[token]
            - counts[token] * params.frequency_penalty
            - (counts[token] > 0) * params.presence_penalty
            for token in range(VOCABULARY)
        ]
    )


@given(
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=100),
    answer=TOKENS,
    repetition=st.sampled_from([0.5, 1.0, 1.3, 2.0]),
    frequency=PENALTY,
    presence=PENALTY,
)
def test_penalties(
    prompt: list[int], answer: list[int], repetition: float, frequency: float, presence: float
) -> None:
    params = SamplingParams(
        1000, repetition_penalty=repetition, frequency_penalty=frequency, presence_penalty=presence
    )
    sequence = Sequence("test", "tenant", prompt.copy(), params)
    counts = TokenCounts(sequence)
    for number, token in enumerate([*answer, 0]):
        # The counts follow, whether each token is looked at or several come at once.
        if number % 3 == 0 or number == len(answer):
            logits = random_logits(number)
            expected = expected_after(logits, sequence)
            penalise(logits, *counts.current(), params)
            np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
        sequence.append(token, frozenset())


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("token_ids", [[0], [3, 3, 7, 3], list(range(VOCABULARY))], ids=len)
def test_the_repetition_penalty_equals_that_of_transformers(penalty: float, token_ids: list[int]) -> None:
    """To the last bit, and the prompt's tokens count."""
    params = SamplingParams(1, repetition_penalty=penalty)
    counts = TokenCounts(Sequence("test", "tenant", token_ids, params))
    for seed in range(5):
        logits = random_logits(seed)
        expected = penalised_reference(logits, token_ids, penalty)
        penalise(logits, *counts.current(), params)
        assert np.array_equal(logits, expected)


def test_the_prompt_s_tokens_do_not_count_for_openai_s_penalties() -> None:
    params = SamplingParams(9, frequency_penalty=1.0, presence_penalty=1.0)
    sequence = Sequence("test", "tenant", [1, 1, 2], params)
    counts = TokenCounts(sequence)
    assert [len(each) for each in counts.current()] == [0, 0]
    sequence.append(2, frozenset())
    assert [each.tolist() for each in counts.current()] == [[2], [1.0]]


@given(st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-100, 100, width=32), max_size=60))
def test_a_bias_equals_that_of_transformers(bias: dict[int, float]) -> None:
    logits = random_logits()
    expected = logits.copy()
    if bias:
        single: Any = {(token,): value for token, value in bias.items()}
        process: Any = SequenceBiasLogitsProcessor(single)
        expected = process(torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(logits[None]))[0].numpy()
    add_bias(logits, bias)
    np.testing.assert_allclose(logits, expected, 1e-6)


@pytest.mark.parametrize("token_ids", [set(), {3}, {3, 4}, set(range(1, VOCABULARY))], ids=len)
def test_excluded_tokens(token_ids: set[int]) -> None:
    logits, before = random_logits(), random_logits()
    exclude(logits, token_ids)
    for token in range(VOCABULARY):
        assert logits[token] == (-np.inf if token in token_ids else before[token])


def test_not_every_token_is_excluded() -> None:
    logits = random_logits()
    logits[7] = -np.inf
    before = logits.copy()
    exclude(logits, set(range(VOCABULARY)) - {7})
    assert np.array_equal(logits, before)

"""The next token is greedy, or drawn from transformers' distribution."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from control_plane.engine.model.logits import Logits
from control_plane.engine.model.sampler import (
    PART,
    Sampler,
    masked,
    token_at,
    token_logprobs,
    token_probabilities,
)
from control_plane.engine.state.sequence import SamplingParams, Sequence
from tests.engine.model.test_logits import penalised_reference

VOCABULARY = 50


def random_logits(rows: int, seed: int = 0) -> Logits:
    return np.random.default_rng(seed).standard_normal((rows, VOCABULARY), np.float32)


def make_sequence(temperature: float = 1.0, seed: int | None = None) -> Sequence:
    return Sequence("test", "tenant", [0], SamplingParams(16, temperature=temperature, seed=seed))


def draw(sampler: Sampler, sequence: Sequence, steps: int, others: int = 0) -> list[int | None]:
    """A sequence's tokens over some steps, as the last of a batch with `others` more."""
    batch = [*(make_sequence(seed=7) for _ in range(others)), sequence]
    return [sampler.sample(random_logits(1, step).repeat(len(batch), 0), batch)[-1] for step in range(steps)]


def reference(logits: Logits, params: SamplingParams) -> Logits:
    """The distribution [rows, vocabulary] that transformers' `generate` draws from."""
    warpers: Any = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        warpers.append(MinPLogitsWarper(params.min_p))
    scores: torch.Tensor = warpers(torch.empty(0, dtype=torch.long), torch.from_numpy(logits))
    probabilities: Logits = scores.softmax(dim=-1).numpy()
    return probabilities


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 4.0, 100.0])
@pytest.mark.parametrize("top_k", [0, 1, 5, VOCABULARY, 10 * VOCABULARY])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.95, 1.0])
def test_probabilities_equal_those_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    params = SamplingParams(1, temperature, top_k, top_p)
    logits = random_logits(20)
    ours = np.stack([token_probabilities(row, params) for row in logits])
    np.testing.assert_allclose(ours, reference(logits, params), 2e-6, 1e-7)


@pytest.mark.parametrize("min_p", [0.001, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("others", [{}, {"top_k": 5}, {"top_p": 0.6}, {"top_k": 10, "top_p": 0.8}], ids=str)
@pytest.mark.parametrize("temperature", [0.7, 4.0])
def test_min_p_equals_that_of_transformers(min_p: float, others: dict[str, Any], temperature: float) -> None:
    params = SamplingParams(1, temperature, min_p=min_p, **others)
    logits = random_logits(20)
    ours = np.stack([token_probabilities(row, params) for row in logits])
    np.testing.assert_allclose(ours, reference(logits, params), 2e-6, 1e-7)


def test_a_penalty_changes_the_likeliest_token() -> None:
    """Greedy sequences are penalised too, each by its own prompt and answer."""
    logits = np.abs(random_logits(1)[0])
    best, second = np.argsort(-logits)[:2].tolist()
    params = SamplingParams(16, repetition_penalty=100.0)
    repeating = Sequence("test", "tenant", [best], params)
    other = Sequence("test", "tenant", [second], params)
    assert Sampler().sample(logits[None].repeat(2, 0), [repeating, other]) == [second, best]
    repeating.append(second, frozenset())
    assert Sampler().sample(logits[None], [repeating])[0] not in (best, second)


def test_draws_follow_transformers_whole_list_of_processors() -> None:
    """The penalty comes before the temperature, and that before top-k, top-p and min-p."""
    params = SamplingParams(1, 0.6, top_k=12, top_p=0.9, min_p=0.05, repetition_penalty=1.8, seed=5)
    sequence = Sequence("test", "tenant", [1, 4, 9, 16, 25, 36, 49], params)
    logits = random_logits(1)[0] * 2
    expected = reference(penalised_reference(logits, sequence.token_ids, 1.8)[None], params)[0]
    sampler = Sampler()
    tokens = [sampler.sample(logits[None], [sequence])[0] for _ in range(4000)]
    frequencies = np.bincount(np.array(tokens, int), minlength=VOCABULARY) / len(tokens)
    assert not frequencies[expected == 0].any()
    assert np.abs(frequencies - expected).sum() / 2 < 0.03


@pytest.mark.parametrize("vocabulary", [1, 7, PART, 3 * PART + 5])
def test_every_token_has_its_part_of_the_points(vocabulary: int) -> None:
    weights = np.random.default_rng(1).random(vocabulary)
    weights[::3] = 0
    weights[vocabulary // 2] = 1
    probabilities = (weights / weights.sum()).astype(np.float32)
    ends = probabilities.cumsum(dtype=np.float64) / probabilities.sum(dtype=np.float64)
    likely = probabilities.nonzero()[0].tolist()
    # Just inside both ends of each token's part.
    assert [token_at(float(ends[token]) - 1e-12, probabilities) for token in likely] == likely
    starts = [0.0, *ends[likely[:-1]].tolist()]
    assert [token_at(start + 1e-12, probabilities) for start in starts] == likely


def test_the_last_point_is_a_likely_token() -> None:
    probabilities = np.array([0.0, 0.3, 0.7, 0.0, 0.0], np.float32)
    assert token_at(0.0, probabilities) == 1
    assert token_at(1 - 2**-53, probabilities) == 2
    assert token_at(1.0, probabilities) == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("what", [np.nan, np.inf, -np.inf])
def test_a_row_of_nan_or_infinity_does_not_affect_others(temperature: float, what: float) -> None:
    logits = random_logits(3)
    alone = Sampler().sample(logits, [make_sequence(temperature, seed) for seed in range(3)])
    assert None not in alone
    logits[1] = what
    batch = Sampler().sample(logits, [make_sequence(temperature, seed) for seed in range(3)])
    assert batch == [alone[0], None, alone[2]]


def test_a_single_nan_makes_its_row_invalid() -> None:
    logits = random_logits(2)
    logits[0, 7] = np.nan
    token, other = Sampler().sample(logits, [make_sequence(seed=1), make_sequence(seed=2)])
    assert token is None
    assert other is not None


def test_an_excluded_token_is_not_an_error() -> None:
    logits = random_logits(1)
    logits[0, 7] = -np.inf
    assert 7 not in draw_from(logits, 50)


def draw_from(logits: Logits, steps: int) -> list[int | None]:
    """Tokens of one sequence for the same logits at each step."""
    sampler, sequence = Sampler(), make_sequence(seed=1)
    return [sampler.sample(logits, [sequence])[0] for _ in range(steps)]


@pytest.mark.parametrize("num_top", [0, 1, 5, 10 * VOCABULARY])
def test_logprobs_are_those_of_the_logits(num_top: int) -> None:
    logits = random_logits(4)
    expected = torch.from_numpy(logits).log_softmax(dim=-1).numpy()
    token_ids = [3, 0, 49, 3]
    for row, token_id, reported in zip(
        expected, token_ids, token_logprobs(logits, token_ids, num_top), strict=True
    ):
        assert reported.token_id == token_id
        assert reported.logprob == pytest.approx(float(row[token_id]))
        order = np.argsort(-row)[:num_top].tolist()
        assert [token for token, _ in reported.top] == order
        assert [logprob for _, logprob in reported.top] == pytest.approx(row[order].tolist())


def test_equal_logits_stay_in_together() -> None:
    params = SamplingParams(1, temperature=1.0, top_k=2)
    logits = np.array([[2.0, 1.0, 1.0, 1.0, 0.0]], np.float32)
    ours = token_probabilities(logits[0], params)
    assert np.count_nonzero(ours) == 4
    np.testing.assert_allclose(ours[None], reference(logits, params), 2e-6)


# Divided by the last three, float32 logits are infinite or undefined.
@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1e-38, 1e-46, 5e-324])
def test_greedy(temperature: float) -> None:
    logits = random_logits(3)
    sequences = [make_sequence(temperature) for _ in range(3)]
    assert Sampler().sample(logits, sequences) == logits.argmax(axis=1).tolist()


def test_greedy_and_random_sequences_in_one_batch() -> None:
    logits = random_logits(1).repeat(2, 0)
    sampler, greedy = Sampler(), make_sequence(0.0)
    drawn = [sampler.sample(logits, [greedy, make_sequence(seed=seed)]) for seed in range(20)]
    assert {token for token, _ in drawn} == {int(logits[0].argmax())}
    assert len({token for _, token in drawn}) > 1


def test_draws_follow_the_distribution() -> None:
    """After 4000 draws, chance leaves a total variation distance of about 0.04."""
    logits, sequence = random_logits(1), make_sequence(temperature=1.0, seed=1)
    sampler = Sampler()
    tokens = [sampler.sample(logits, [sequence])[0] for _ in range(4000)]
    frequencies = np.bincount(np.array(tokens, int), minlength=VOCABULARY) / len(tokens)
    expected = token_probabilities(logits[0], sequence.params)
    assert np.abs(frequencies - expected).sum() / 2 < 0.06


def test_the_same_seed_gives_the_same_tokens() -> None:
    first = draw(Sampler(), make_sequence(seed=3), steps=20)
    assert draw(Sampler(), make_sequence(seed=3), steps=20) == first
    assert draw(Sampler(), make_sequence(seed=4), steps=20) != first
    assert draw(Sampler(), make_sequence(), steps=20) != draw(Sampler(), make_sequence(), steps=20)


@pytest.mark.parametrize("others", [1, 5])
def test_others_in_the_batch_do_not_change_a_sequences_tokens(others: int) -> None:
    alone = draw(Sampler(), make_sequence(seed=3), steps=20)
    assert draw(Sampler(), make_sequence(seed=3), steps=20, others=others) == alone


def test_a_sequence_that_has_ended_is_forgotten() -> None:
    sampler, sequence = Sampler(), make_sequence(seed=3)
    first = draw(sampler, sequence, steps=20)
    assert draw(sampler, sequence, steps=20) != first
    sampler.forget(sequence)
    assert draw(sampler, sequence, steps=20) == first
    sampler.forget(make_sequence())


# Each by name, and whether it keeps the sequence's state.
CHANGES = [
    pytest.param(SamplingParams(9, frequency_penalty=2.0), id="frequency"),
    pytest.param(SamplingParams(9, presence_penalty=2.0), id="presence"),
    pytest.param(SamplingParams(9, repetition_penalty=1.5), id="repetition"),
    pytest.param(SamplingParams(9, logit_bias={3: 100.0}), id="bias"),
    pytest.param(SamplingParams(9, min_tokens=8, stop_token_ids=frozenset({1, 2})), id="least tokens"),
]


@pytest.mark.parametrize("params", CHANGES)
def test_changed_logits_are_not_those_that_are_reported(params: SamplingParams) -> None:
    """Log-probabilities are the model's own, so a row must not change, nor the rows of others."""
    logits = random_logits(2)
    before = logits.copy()
    sampler, plain = Sampler(frozenset({0})), make_sequence(0.0)
    sequence = Sequence("test", "tenant", [0], params)
    for _ in range(5):
        token, other = sampler.sample(logits, [sequence, plain])
        assert other == int(before[1].argmax())
        assert token is not None
        sequence.append(token, frozenset())
        assert np.array_equal(logits, before)
    sampler.forget(sequence)
    assert not sampler._counts


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bias_forces_and_forbids_tokens(temperature: float) -> None:
    logits = random_logits(1)
    best = int(logits.argmax())

    def chosen(bias: dict[int, float]) -> set[int | None]:
        params = SamplingParams(9, temperature, seed=1, logit_bias=bias)
        sampler, sequence = Sampler(), Sequence("test", "tenant", [0], params)
        return {sampler.sample(logits, [sequence])[0] for _ in range(60)}

    assert chosen({7: 100.0}) == {7}
    assert best in chosen({})
    assert best not in chosen({best: -100.0})


@pytest.mark.parametrize("temperature", [0.0, 2.0])
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_no_token_ends_an_answer_before_min_tokens(temperature: float, ignore_eos: bool) -> None:
    """The model's own end tokens count only if they end the answer."""
    logits = np.zeros((1, VOCABULARY), np.float32)
    logits[0, 5], logits[0, 6], logits[0, 7] = 90.0, 60.0, 30.0
    params = SamplingParams(
        9, temperature, seed=1, min_tokens=3, stop_token_ids=frozenset({6}), ignore_eos=ignore_eos
    )
    sampler, sequence = Sampler(frozenset({5})), Sequence("test", "tenant", [5, 6, 7], params)
    while not sequence.finish_reason:
        (token,) = sampler.sample(logits, [sequence])
        assert token is not None
        sequence.append(token, frozenset({5}))
    if ignore_eos:
        assert sequence.output_ids == [5] * 9
    else:
        assert sequence.output_ids == [7, 7, 7, 5]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_that_can_only_end_ends(temperature: float) -> None:
    """Every token ends the answer: it is not the fault of the model's logits."""
    params = SamplingParams(9, temperature, min_tokens=5, stop_token_ids=frozenset(range(VOCABULARY)))
    sequence = Sequence("test", "tenant", [0], params)
    (token,) = Sampler().sample(random_logits(1), [sequence])
    assert token is not None


def test_what_a_mask_excludes_is_never_drawn() -> None:
    """Not even if it is certain, and all that remain are impossible."""
    allowed = [3, VOCABULARY - 1]
    bits = np.zeros(VOCABULARY, np.uint8)
    bits[allowed] = 1
    mask = np.packbits(bits, bitorder="little").tobytes()
    logits = random_logits(1)[0]
    logits[5] = 1000.0
    held = masked(logits, mask)
    assert held[allowed].tolist() == logits[allowed].tolist()
    assert np.isfinite(held).nonzero()[0].tolist() == allowed
    logits[allowed] = -np.inf
    assert token_probabilities(masked(logits, mask), SamplingParams(1, 1.0))[allowed].tolist() == [0.5, 0.5]


def test_top_p_of_many_tokens_that_are_equally_likely() -> None:
    """A sum of float32 would be wrong by hundreds of tokens."""
    ours = token_probabilities(np.zeros(200_000, np.float32), SamplingParams(1, 1.0, top_p=0.9))
    assert abs(np.count_nonzero(ours) - 180_000) <= 1

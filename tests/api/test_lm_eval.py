"""The requests of lm-evaluation-harness with `--model local-completions`, and its use of the answers.

The tests build requests and read answers in the same way as the harness's TemplateAPI, so the harness need
not be installed. A request has a batch of token ids, each a context and its continuation.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.api.api_server import ApiClient, add_tenant, serving
from tests.support.models.tiny_chat_model import NAME

PAIRS = [
    ("the cat sat on", " the mat"),
    ("the dog ran after", " the naïve cat"),
    ("then the rat ate what was left", "."),
    ("t", "he cat; then the rat, and the dog, and the cat sat on what was left on the mat"),
]

Pairs = list[tuple[list[int], list[int]]]


@pytest.fixture(scope="module")
def api(chat_partition: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiClient]:
    """A client of the whole system, with a tenant's key."""
    database = tmp_path_factory.mktemp("database") / "faasmoe.db"
    # Fewer tokens per step than a prompt has, so a prompt is computed in several steps.
    with serving(chat_partition, database, max_batch_tokens=16, max_sequences=4) as client:
        yield client.with_key(add_tenant(database, "evaluation"))


@pytest.fixture(scope="module")
def pairs(tokenizer: Any, unsplit: Any) -> Pairs:
    """Contexts and continuations; two of the continuations are the model's own greedy text."""
    encoded = [tuple(tokenizer(text)["input_ids"] for text in pair) for pair in PAIRS]
    for context in ([5, 6, 7], encoded[0][0]):
        output = unsplit.generate(torch.tensor([context]), max_new_tokens=9, do_sample=False)
        encoded.append((context, output[0, len(context) :].tolist()))
    return encoded


@pytest.fixture(scope="module")
def wanted(pairs: Pairs, unsplit: Any) -> list[tuple[float, bool]]:
    """The unsplit model's log-likelihood of each continuation, and whether it is the greedy one."""
    results = []
    for context, continuation in pairs:
        rows = unsplit(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
        logprobs = rows.log_softmax(-1).gather(1, torch.tensor(continuation)[:, None])
        results.append((float(logprobs.sum()), rows.argmax(-1).tolist() == continuation))
    return results


def joined(pairs: Pairs) -> list[list[int]]:
    return [[*context, *continuation] for context, continuation in pairs]


def payload(prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
    return {
        "model": NAME,
        "prompt": prompts,
        "temperature": 0,
        "max_tokens": max_tokens,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }


def parsed(answer: Any, context_lengths: list[int], end: int | None) -> list[tuple[float, bool]]:
    """Log-likelihoods and greedy flags, computed from the answer as the harness does."""
    results = []
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    for choice, length in zip(choices, context_lengths, strict=True):
        logprobs = choice["logprobs"]["token_logprobs"][length:end]
        tops = choice["logprobs"]["top_logprobs"][length:end]
        is_greedy = all(own == max(top.values()) for own, top in zip(logprobs, tops, strict=True))
        results.append((sum(logprobs), is_greedy))
    return results


@pytest.mark.parametrize("batch_size", [1, 6])
@pytest.mark.parametrize(("max_tokens", "end"), [(1, -1), (0, None)])
def test_log_likelihoods_equal_the_unsplit_model_s(
    api: ApiClient,
    pairs: Pairs,
    wanted: list[tuple[float, bool]],
    batch_size: int,
    max_tokens: int,
    end: int | None,
) -> None:
    results: list[tuple[float, bool]] = []
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        answer = api.post("/v1/completions", **payload(joined(batch), max_tokens))
        assert answer["usage"]["completion_tokens"] == max_tokens * len(batch)
        results += parsed(answer, [len(context) for context, _ in batch], end)
    assert [likelihood for likelihood, _ in results] == pytest.approx([of for of, _ in wanted], abs=1e-3)
    assert [is_greedy for _, is_greedy in results] == [is_greedy for _, is_greedy in wanted]
    assert {is_greedy for _, is_greedy in wanted} == {True, False}


def test_the_last_entry_is_the_generated_token(api: ApiClient, pairs: Pairs, unsplit: Any) -> None:
    prompts = joined(pairs)
    answer = api.post("/v1/completions", **payload(prompts, 1))
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        reported = choice["logprobs"]
        lengths = {name: len(values) for name, values in reported.items()}
        assert set(lengths.values()) == {len(prompt) + 1}, lengths
        assert reported["token_logprobs"][0] is None
        assert reported["top_logprobs"][0] is None
        likeliest = float(unsplit(torch.tensor([prompt])).logits[0, -1].log_softmax(-1).max())
        assert reported["token_logprobs"][-1] == pytest.approx(likeliest, abs=1e-3)


def test_generation_until_a_stop_string(api: ApiClient, tokenizer: Any, expected: Any) -> None:
    """The requests of the harness's generation tasks."""
    token_ids = tokenizer("the cat sat on")["input_ids"]
    text = expected(token_ids, 40)
    stop = text[12:15]
    body = {"model": NAME, "prompt": [token_ids, token_ids], "max_tokens": 40, "temperature": 0}
    answer = api.post("/v1/completions", **body, stop=[stop, "<|end|>"], seed=1234)
    assert [choice["text"] for choice in answer["choices"]] == [text[: text.index(stop)]] * 2

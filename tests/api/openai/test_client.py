"""OpenAI's client against a whole system."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from tests.support.api.api_server import ApiClient, add_tenant, openai_client
from tests.support.models.tiny_chat_model import NAME

pytestmark = pytest.mark.slow

MESSAGES: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "who sat?"}]
HOT: Any = {"model": NAME, "prompt": "the cat", "max_tokens": 24, "temperature": 1.5, "seed": 7}


@pytest.fixture(scope="module")
def key(server: ApiClient, database: Path) -> str:
    return add_tenant(database, "acme", rpm=100_000, tpm=10_000_000)


@pytest.fixture(scope="module")
def client(server: ApiClient, key: str) -> Iterator[openai.OpenAI]:
    with openai_client(server, key) as client:
        yield client


def chat_ids(tokenizer: Any) -> list[int]:
    return list(tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False))


def test_a_chat(client: openai.OpenAI, tokenizer: Any, expected: Any) -> None:
    token_ids = chat_ids(tokenizer)
    text = expected(token_ids, 40)
    asked: Any = {"model": NAME, "messages": MESSAGES, "max_completion_tokens": 40, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    (choice,) = whole.choices
    assert (whole.object, whole.model, choice.message.role) == ("chat.completion", NAME, "assistant")
    assert (choice.message.content, choice.finish_reason) == (text, "length")
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(token_ids), 40)
    assert whole.system_fingerprint

    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == "length"
    assert {chunk.id for chunk in (*chunks, last)} == {chunks[0].id}
    assert all(chunk.usage is None for chunk in chunks)
    assert (last.choices, last.usage.total_tokens) == ([], len(token_ids) + 40)


def test_the_client_s_own_stream_of_a_chat(client: openai.OpenAI, tokenizer: Any, expected: Any) -> None:
    text = expected(chat_ids(tokenizer), 20)
    asked: Any = {"model": NAME, "messages": MESSAGES, "max_tokens": 20, "temperature": 0}
    # This stream helper treats an answer that reaches its limit as an error.
    stop = text[10:]
    with client.chat.completions.stream(**asked, stop=stop) as stream:
        streamed = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert streamed == final.choices[0].message.content == text[: text.index(stop)]


def test_completions_of_several_prompts(client: openai.OpenAI, tokenizer: Any, expected: Any) -> None:
    texts = ["the cat", "the dog, naïve"]
    token_ids = [tokenizer(text)["input_ids"] for text in texts]
    wanted = [expected(ids, 20) for ids in token_ids]
    for prompt in (texts, token_ids):
        answer = client.completions.create(model=NAME, prompt=prompt, max_tokens=20, temperature=0, n=2)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert [choice.text for choice in answer.choices] == [wanted[0]] * 2 + [wanted[1]] * 2
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == sum(map(len, token_ids))
        assert answer.usage.completion_tokens == 4 * 20
    echoed = client.completions.create(model=NAME, prompt=texts, max_tokens=20, temperature=0, echo=True)
    assert [choice.text for choice in echoed.choices] == [a + b for a, b in zip(texts, wanted, strict=True)]


def test_streams_of_several_choices(client: openai.OpenAI) -> None:
    whole = client.completions.create(**HOT, n=3)
    texts = ["", "", ""]
    for chunk in client.completions.create(**HOT, n=3, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]


def test_a_seed_repeats_choices_and_the_choices_differ(client: openai.OpenAI) -> None:
    def answers(**changes: Any) -> list[str]:
        return [choice.text for choice in client.completions.create(**{**HOT, "n": 3, **changes}).choices]

    first = answers()
    assert len(set(first)) == 3
    assert answers() == first
    assert answers(seed=8) != first
    assert answers(n=1) == first[:1]


def test_stop(client: openai.OpenAI, tokenizer: Any, expected: Any) -> None:
    text = expected(tokenizer("the cat")["input_ids"], 60)
    stop = text[20:23]
    asked: Any = {"model": NAME, "prompt": "the cat", "max_tokens": 60, "temperature": 0}
    whole = client.completions.create(**asked, stop=[stop, "never comes"])
    assert whole.choices[0].text == text[: text.index(stop)]
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.completion_tokens < 60
    chunks = list(client.completions.create(**asked, stop=stop, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_log_probabilities_of_a_completion(client: openai.OpenAI, tokenizer: Any, unsplit: Any) -> None:
    answer = client.completions.create(
        model=NAME, prompt="the cat sat", max_tokens=5, temperature=0, logprobs=3, echo=True
    )
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    prompt_ids = tokenizer("the cat sat")["input_ids"]
    token_ids = unsplit.generate(torch.tensor([prompt_ids]), max_new_tokens=5, do_sample=False)
    logprobs = unsplit(token_ids).logits[0].log_softmax(-1)
    for place, token_id in enumerate(token_ids[0].tolist()):
        if place == 0:
            no_logprobs: Any = (None, None)
            assert (found.token_logprobs[0], found.top_logprobs[0]) == no_logprobs
            continue
        row = logprobs[place - 1]
        assert found.token_logprobs[place] == pytest.approx(float(row[token_id]), abs=1e-3)
        top = sorted(found.top_logprobs[place].values(), reverse=True)[:3]
        assert top == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)
    assert found.text_offset is not None
    for offset, token in zip(found.text_offset, found.tokens, strict=True):
        assert answer.choices[0].text[offset:].startswith(token)


def test_log_probabilities_of_a_chat(client: openai.OpenAI, tokenizer: Any, unsplit: Any) -> None:
    asked: Any = {"model": NAME, "messages": MESSAGES, "max_tokens": 6, "temperature": 0, "logprobs": True}
    answer = client.chat.completions.create(**asked, top_logprobs=2)
    entries = answer.choices[0].logprobs.content
    prompt = torch.tensor([chat_ids(tokenizer)])
    token_ids = unsplit.generate(prompt, max_new_tokens=6, do_sample=False)
    rows = unsplit(token_ids).logits[0, prompt.shape[1] - 1 : -1].log_softmax(-1)
    assert entries is not None
    for entry, row in zip(entries, rows, strict=True):
        assert entry.logprob == pytest.approx(float(row.max()), abs=1e-3)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(
            row.topk(2).values.tolist(), abs=1e-3
        )
        assert entry.top_logprobs[0].token == entry.token
    raw = bytes(byte for entry in entries for byte in entry.bytes or ())
    assert raw.decode(errors="replace") == answer.choices[0].message.content
    chunks = list(client.chat.completions.create(**asked, top_logprobs=2, stream=True))
    streamed = [
        entry
        for chunk in chunks
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content or ()
    ]
    assert [(e.token, e.logprob) for e in streamed] == [(e.token, e.logprob) for e in entries]


@pytest.mark.parametrize("only_the_likeliest", [{"top_k": 1}, {"min_p": 1}])
def test_fields_beyond_openai_s(
    client: openai.OpenAI, tokenizer: Any, expected: Any, only_the_likeliest: dict[str, Any]
) -> None:
    answer = client.completions.create(**HOT, extra_body=only_the_likeliest)
    assert answer.choices[0].text == expected(tokenizer("the cat")["input_ids"], 24)


def test_a_repetition_penalty(client: openai.OpenAI, tokenizer: Any, unsplit: Any) -> None:
    prompt_ids = tokenizer("the cat sat on the mat")["input_ids"]
    penalty = {"repetition_penalty": 1.7}
    output = unsplit.generate(torch.tensor([prompt_ids]), max_new_tokens=30, do_sample=False, **penalty)
    answer = client.completions.create(
        model=NAME, prompt=prompt_ids, max_tokens=30, temperature=0, extra_body=penalty
    )
    text = tokenizer.decode(output[0, len(prompt_ids) :], skip_special_tokens=True)
    assert answer.choices[0].text == text


def test_an_end_token_that_is_ignored(client: openai.OpenAI) -> None:
    asked: Any = {**HOT, "temperature": 2, "max_tokens": 300, "n": 3, "seed": 1}
    reasons = {choice.finish_reason for choice in client.completions.create(**asked).choices}
    assert "stop" in reasons
    ignoring = client.completions.create(**asked, extra_body={"ignore_eos": True})
    assert {choice.finish_reason for choice in ignoring.choices} == {"length"}


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object) == (NAME, "model")
    assert client.models.retrieve(NAME) == model
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        client.models.retrieve("gpt-4")


def test_the_asynchronous_client(server: ApiClient, key: str, client: openai.OpenAI) -> None:
    prompts = [f"the {number} cats" for number in range(8)]
    alone = [client.completions.create(**{**HOT, "prompt": prompt}).choices[0].text for prompt in prompts]

    async def stream(asynchronous: openai.AsyncOpenAI, prompt: str) -> str:
        chunks = await asynchronous.completions.create(**{**HOT, "prompt": prompt}, stream=True)
        return "".join([chunk.choices[0].text async for chunk in chunks])

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=str(server.url / "v1"), api_key=key, max_retries=0
        ) as asynchronous:
            assert [model.id async for model in asynchronous.models.list()] == [NAME]
            return await asyncio.gather(*(stream(asynchronous, prompt) for prompt in prompts))

    assert asyncio.run(together()) == alone

"""Prompts are read as text or as token ids, and so are the bodies of /tokenize and /detokenize."""

from typing import Any

import pytest

from control_plane.api.openai.requests import parse_detokenize, parse_tokenize
from control_plane.api.text.request import Chat, DetokenizeRequest, TokenizeRequest
from tests.support.api.openai_bodies import HELLO, completion, refused


def tokenize(**body: Any) -> TokenizeRequest:
    return parse_tokenize(body)


def detokenize(**body: Any) -> DetokenizeRequest:
    return parse_detokenize(body)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ("a",)),
        (["a"], ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ([1, 2],)),
        ([[1, 2], [3]], ([1, 2], [3])),
        (["a"] * 256, ("a",) * 256),
    ],
)
def test_prompts(prompt: Any, prompts: tuple[Any, ...]) -> None:
    assert completion(prompt=prompt).prompts == prompts


@pytest.mark.parametrize(
    "prompt",
    [
        *(None, "", [], [[]], ["a", ""], [[1], []], ["a", [1]], [[1], "a"], [1, "a"], [1, [2]], ["a"] * 257),
        *(5, {"text": "a"}, [1.5], [True], [None], [["a"]]),
    ],
)
def test_wrong_prompts(prompt: Any) -> None:
    assert refused(completion, prompt=prompt).param == "prompt"


def test_tokenize() -> None:
    assert tokenize(prompt="hello").add_special_tokens
    assert tokenize(prompt="hello").prompt == "hello"
    assert not tokenize(prompt="hello", add_special_tokens=False).add_special_tokens
    assert tokenize(messages=HELLO, add_special_tokens=False).prompt == Chat(HELLO)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": HELLO}, "prompt"),
        ({"prompt": [1]}, "prompt"),
        ({"messages": []}, "messages"),
        ({"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
        ({"messages": HELLO, "add_special_tokens": True}, "add_special_tokens"),
        ({"prompt": "a", "return_token_strs": True}, "return_token_strs"),
    ],
)
def test_wrong_tokenize(body: dict[str, Any], param: str) -> None:
    assert refused(tokenize, **body).param == param


def test_detokenize() -> None:
    assert detokenize(tokens=[1, 2]).token_ids == [1, 2]
    assert detokenize(tokens=[]).token_ids == []
    for tokens in (None, "a", [1.5], [True], ["a"]):
        assert refused(detokenize, tokens=tokens).param == "tokens"


def test_the_largest_number_of_token_ids() -> None:
    half = [5] * 500_000
    assert completion(prompt=[half, half]).prompts == (half, half)
    for prompt in ([half, half, [1]], [*half, *half, 1], [*half, *half, None]):
        assert "at most 1000000 token ids" in str(refused(completion, prompt=prompt))
    assert "at most 1000000" in str(refused(detokenize, tokens=[*half, *half, 1]))

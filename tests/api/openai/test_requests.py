"""Request bodies are read as OpenAI's API defines them, and errors name the field."""

import json
from typing import Any

import pytest

from control_plane.api.openai.requests import (
    parse_chat,
    parse_completion,
    parse_detokenize,
    parse_tokenize,
)
from control_plane.api.text.request import SamplingDefaults
from control_plane.engine.state.sequence import SamplingParams
from control_plane.errors import BadRequest
from tests.support.api.openai_bodies import HELLO, chat, completion, refused

DEFAULTS = SamplingDefaults()


@pytest.mark.parametrize(("parse", "max_tokens"), [(chat, None), (completion, 16)])
def test_defaults_are_openai_s(parse: Any, max_tokens: int | None) -> None:
    request = parse()
    assert (request.n, request.stop, request.max_tokens) == (1, (), max_tokens)
    assert (request.stream, request.include_usage, request.continuous_usage) == (False, False, False)
    assert (request.echo, request.user) == (False, None)
    assert request.sampling_params(7, 0, DEFAULTS) == SamplingParams(7, temperature=1.0)


def test_every_field_reaches_the_engine() -> None:
    request = completion(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.2,
        frequency_penalty=-2,
        presence_penalty=0.5,
        logit_bias={"5": -100, "7": 0.5},
        min_tokens=2,
        stop_token_ids=[3, 4, 3],
        seed=5,
        ignore_eos=True,
        logprobs=3,
        echo=True,
    )
    assert request.sampling_params(9, 0, DEFAULTS) == SamplingParams(
        9,
        temperature=0.5,
        top_k=40,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.2,
        frequency_penalty=-2.0,
        presence_penalty=0.5,
        logit_bias={5: -100.0, 7: 0.5},
        min_tokens=2,
        stop_token_ids=frozenset({3, 4}),
        seed=5,
        ignore_eos=True,
        logprobs=3,
        prompt_logprobs=True,
    )


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize(
    ("field", "values", "read"),
    [
        ("n", [1, 128, 2.0], [1, 128, 2]),
        ("stop", ["a", ["a", "b"], [], None], [("a",), ("a", "b"), (), ()]),
        ("temperature", [0, 2, 0.5], [0.0, 2.0, 0.5]),
        ("top_p", [1, 0.01], [1.0, 0.01]),
        ("top_k", [-1, 0, 5], [0, 0, 5]),
        ("seed", [0, 7, -1, -(1 << 63), (1 << 63) - 1], [0, 7, (1 << 63) - 1, 0, (1 << 63) - 1]),
        ("max_tokens", [1, 100, 12.0], [1, 100, 12]),
        ("min_tokens", [0, 3, 3.0], [0, 3, 3]),
        ("frequency_penalty", [-2, 2, 0.5], [-2.0, 2.0, 0.5]),
        ("presence_penalty", [-2, 2, 0], [-2.0, 2.0, 0.0]),
        ("logit_bias", [{}, {"0": 100}], [{}, {0: 100.0}]),
        ("stop_token_ids", [[], [2, 2]], [frozenset(), frozenset({2})]),
        ("skip_special_tokens", [True, False], [True, False]),
        ("user", ["someone", ""], ["someone", ""]),
        ("stream", [True, False, None], [True, False, False]),
    ],
)
def test_accepted_values(parse: Any, field: str, values: list[Any], read: list[Any]) -> None:
    requests = [parse(**{field: value}) for value in values]
    values_of = [request.sampling if hasattr(request.sampling, field) else request for request in requests]
    assert [getattr(each, field) for each in values_of] == read


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("model", [4, True, []]),
        ("n", [0, 129, "1", 1.5, True, 1e300]),
        ("best_of", [0, 2, True]),
        ("stop", ["", [""], ["a"] * 17, "a" * 1025, [1], {}, 5, ["a", None]]),
        ("max_tokens", [-1, 0, "5", 5.5, True, 1 << 63, 1e19]),
        (
            "temperature",
            [-0.1, 2.1, "hot", True, float("nan"), float("inf"), 10**400, []],
        ),
        ("top_p", [0, 1.1, -1, float("nan"), 1e-320]),
        ("top_k", [-2, 1.5, True]),
        ("min_p", [-0.1, 1.1, "a"]),
        ("repetition_penalty", [0, -1, 10.5, float("inf")]),
        ("seed", [1.5, "a", True, 1 << 63, -(1 << 63) - 1]),
        ("ignore_eos", [1, "true"]),
        ("return_token_ids", [1, "true"]),
        ("stream", [1, "true"]),
        ("stream_options", [[], True, {"include_usage": True}]),
        ("user", [7, {}]),
        ("frequency_penalty", [-2.1, 2.1, False, "0", float("nan")]),
        ("presence_penalty", [-2.1, 2.1, []]),
        (
            "logit_bias",
            [{"5": 100.5}, {"a": 1}, {"5": "1"}, {"05": 1}, [], dict.fromkeys(map(str, range(1025)), 1)],
        ),
        ("min_tokens", [-1, 1.5, True]),
        ("stop_token_ids", [5, ["a"], [1.5], [1] * 129]),
        ("skip_special_tokens", [1, "true"]),
        ("include_stop_str_in_output", [1]),
        ("use_beam_search", [True]),
        ("bad_words", [["a"]]),
    ],
)
def test_a_wrong_value_is_named(parse: Any, field: str, values: list[Any]) -> None:
    for value in values:
        assert refused(parse, **{field: value}).param == field


@pytest.mark.parametrize(
    ("neutral", "other"),
    [
        ({"functions": []}, {"functions": [{"name": "f"}]}),
        ({"modalities": ["text"]}, {"modalities": ["audio"]}),
        ({"audio": None}, {"audio": {"voice": "alloy", "format": "wav"}}),
        ({"function_call": "auto"}, {"function_call": {"name": "f"}}),
        ({"web_search_options": None}, {"web_search_options": {}}),
        ({"best_of": 1}, {"best_of": 2}),
        ({"echo": False}, {"echo": True}),
        ({"add_special_tokens": False}, {"add_special_tokens": True}),
    ],
)
def test_chats_may_have_unsupported_fields_with_neutral_values(
    neutral: dict[str, Any], other: dict[str, Any]
) -> None:
    assert chat(**neutral) == chat()
    refusal = refused(chat, **other)
    assert [refusal.param] == list(other)
    assert "not supported" in str(refusal)


def test_completions_may_have_unsupported_fields_with_neutral_values() -> None:
    assert completion(suffix="", best_of=1, logit_bias={}, tools=[]) == completion()
    assert completion(best_of=3, n=3).n == 3
    others: list[dict[str, Any]] = [{"suffix": "end"}, {"best_of": 2}, {"messages": HELLO}, {"tools": [{}]}]
    for other in others:
        assert [refused(completion, **other).param] == list(other)


@pytest.mark.parametrize(
    ("parse", "body"),
    [
        (parse_chat, {"messages": HELLO}),
        (parse_completion, {"prompt": "hello"}),
        (parse_tokenize, {"prompt": "hello"}),
        (parse_detokenize, {"tokens": [1]}),
    ],
)
def test_a_body_is_an_object_that_may_name_the_model(parse: Any, body: dict[str, Any]) -> None:
    assert parse({**body, "model": "tiny"}) == parse(body)
    not_objects: list[Any] = [None, [], "hello", 5]
    for no_object in not_objects:
        with pytest.raises(BadRequest, match="the body must be a JSON object"):
            parse(no_object)


def test_the_limit_of_tokens() -> None:
    assert completion(max_tokens=0, echo=True).max_tokens == 0
    assert chat(max_tokens=5).max_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=7).max_tokens == 7
    assert refused(chat, max_completion_tokens=0).param == "max_completion_tokens"
    assert refused(completion, max_completion_tokens=5).param == "max_completion_tokens"


def test_logprobs() -> None:
    assert [completion(logprobs=value).logprobs for value in (None, False, 0, 20)] == [None, None, 0, 20]
    assert [refused(completion, logprobs=value).param for value in (True, -1, 21, "1")] == ["logprobs"] * 4
    assert [chat(logprobs=value).logprobs for value in (None, False, True)] == [None, None, 0]
    assert chat(logprobs=True, top_logprobs=20).logprobs == 20
    assert chat(top_logprobs=0).logprobs is None
    assert refused(chat, logprobs=1).param == "logprobs"
    for wrong in ({"top_logprobs": 1}, {"top_logprobs": 1, "logprobs": False}):
        assert refused(chat, **wrong).param == "top_logprobs"
    for value in (-1, 21, True):
        assert refused(chat, logprobs=True, top_logprobs=value).param == "top_logprobs"


def test_prompt_logprobs_come_with_echo() -> None:
    assert completion(echo=True, logprobs=1).sampling_params(1, 0, DEFAULTS).prompt_logprobs
    assert not completion(echo=True).sampling_params(1, 0, DEFAULTS).prompt_logprobs
    assert not completion(logprobs=1).sampling_params(1, 0, DEFAULTS).prompt_logprobs


def test_stream_options() -> None:
    def options(**values: Any) -> tuple[bool, bool]:
        request = chat(stream=True, stream_options=values)
        return request.include_usage, request.continuous_usage

    assert options() == (False, False)
    assert options(include_usage=True, include_obfuscation=False) == (True, False)
    assert options(include_usage=True, continuous_usage_stats=True) == (True, True)
    assert chat(stream_options=None) == chat()
    for wrong in ({"include_usage": 1}, {"continuous_usage_stats": "yes"}):
        refusal = refused(chat, stream=True, stream_options=wrong)
        assert refusal.param == f"stream_options.{next(iter(wrong))}"


def test_each_answer_to_a_prompt_has_its_own_seed() -> None:
    request = completion(n=3, seed=(1 << 63) - 1)
    assert [request.sampling_params(1, choice, DEFAULTS).seed for choice in range(3)] == [(1 << 63) - 1, 0, 1]
    assert [completion(n=2).sampling_params(1, choice, DEFAULTS).seed for choice in range(2)] == [None, None]


def test_requests_of_evaluation_harnesses_and_load_tools() -> None:
    harness = b"""{"model": "tiny", "prompt": [[1, 2, 3]], "max_tokens": 1, "temperature": 0,
                   "logprobs": 1, "seed": 1234, "echo": true}"""
    request = parse_completion(json.loads(harness))
    assert (request.prompts, request.echo, request.logprobs) == (([1, 2, 3],), True, 1)
    load = b"""{"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 9, "stop": null,
                "ignore_eos": true, "stream": true,
                "stream_options": {"include_usage": true, "continuous_usage_stats": true}}"""
    request = parse_chat(json.loads(load))
    assert (request.ignore_eos, request.max_tokens, request.continuous_usage) == (True, 9, True)


LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("parse", "body"),
    [
        (completion, {"structured_outputs": {LONG: 1}}),
        (chat, {"chat_template_kwargs": {LONG: 1}}),
        (chat, {"messages": [{"role": LONG, "content": "a"}]}),
        (chat, {"messages": [{"role": "user", "content": [{"type": "text", LONG: 1}]}]}),
        (chat, {"messages": [{"role": "user", "content": [{"type": LONG}]}]}),
        (chat, {"messages": [{"role": "user", "content": [{"type": [LONG]}]}]}),
    ],
)
def test_errors_repeat_little_of_the_request(parse: Any, body: dict[str, Any]) -> None:
    refusal = refused(parse, **body)
    assert str(refusal).count("x") <= 90
    assert len(refusal.param or "") <= 100


@pytest.mark.parametrize("parse", [chat, completion])
@pytest.mark.parametrize("half", ["\ud83d", "a\ude00"])
def test_text_that_is_not_unicode(parse: Any, half: str) -> None:
    for field, value in (("user", half), ("stop", half), ("stop", ["a", half]), ("model", half)):
        refusal = refused(parse, **{field: value})
        assert refusal.param == field
        assert "Unicode" in str(refusal)
    refusal = refused(chat, messages=[{**HELLO[0], "name": half}])
    assert str(refusal).startswith("messages[0].name: ")
    assert parse(user="\U0001f600", stop="\U0001f600").stop == ("\U0001f600",)

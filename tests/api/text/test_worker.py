"""Prompts are encoded as transformers does it, and whatever a template or a tokenizer does is an answer."""

import json
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from control_plane.api.text.worker import encoder
from control_plane.api.text.worker.encoder import Encoder
from control_plane.api.text.worker.messages import (
    Answer,
    EncodeChat,
    EncodeText,
    Failed,
    FindEndOfTurn,
    Refused,
    Setup,
    Tokens,
)
from control_plane.api.text.worker.template import environment
from tests.support.paths import DEMO_MODEL

DEMO: Any = AutoTokenizer.from_pretrained(DEMO_MODEL)
HELLO = [{"role": "system", "content": "be <brief>"}, {"role": "user", "content": "na\N{OHM SIGN}ve?"}]

EVERY_FEATURE = """
{%- set ns = namespace(count=0, self='me') %}
{%- for message in messages %}
    {%- if loop.index > 9 %}{% break %}{% endif %}
    {%- set ns.count = ns.count + 1 %}
    {{- message | tojson }}{{ message | tojson(indent=2, sort_keys=true, separators=(',', ':')) }}
    {{ message.content | trim | upper }}{{ message['name'] }}{{ message.role }}
    {% generation %}{{ dict(message, a=1).a }}{{ dict.fromkeys('ab') }}{% endgeneration %}
{%- endfor %}
    {%- if tools is none and documents is none and add_generation_prompt %}
{{ ns.count }}{{ ns.self }}{{ bos_token }}{{ eos_token }}{{ strftime_now('%Y') }}
{% macro say(x) %}<{{ x }}>{% endmacro %}{{ say('it') }}{{ [1, 2] | join(',') }}
{%- endif %}
"""


TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"properties": {"a": {"enum": [1, None]}}}},
}
CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "na\N{OHM SIGN}ve"}, {"type": "image"}]},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "why",
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": [1, {}]}}}
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "done"},
]
SHOW_ALL = (
    "{{ messages | tojson }}{{ tools | tojson }}{{ documents | tojson }}{{ add_generation_prompt }}"
    "{{ enable_thinking is defined and enable_thinking }}{{ bos_token }}{{ depth | default(0) | tojson }}"
)


def setup(tokenizer: Any, template: str = "") -> Setup:
    return Setup(
        tokenizer=tokenizer.backend_tokenizer.to_str(),
        split_special_tokens=tokenizer.split_special_tokens,
        templates={"default": template or tokenizer.chat_template or ""},
        special_tokens=tokenizer.special_tokens_map,
        orphan_seconds=5,
        memory_bytes=1 << 30,
    )


def ids(answer: Answer) -> list[int]:
    assert isinstance(answer, Tokens), answer
    return array("I", answer.ids).tolist()


def chat(messages: Any, continue_final_message: bool = False, **variables: Any) -> EncodeChat:
    others = {"tools": None, "documents": None, "add_generation_prompt": not continue_final_message}
    data = json.dumps({"messages": messages, **others, **variables}).encode()
    return EncodeChat("default", data, continue_final_message)


def rendered(template: str) -> Answer:
    return Encoder(setup(DEMO, template)).answer(chat(HELLO))


@pytest.mark.parametrize("template", [DEMO.chat_template, EVERY_FEATURE], ids=["demo", "every feature"])
def test_a_chat_is_encoded_as_by_transformers(template: str) -> None:
    expected = DEMO.apply_chat_template(
        HELLO, chat_template=template, add_generation_prompt=True, return_dict=False
    )
    assert ids(rendered(template)) == expected


@pytest.mark.parametrize(
    "variables",
    [
        {"tools": [TOOL], "documents": [{"title": "a", "text": "b"}], "enable_thinking": False},
        {"add_generation_prompt": False, "bos_token": "another", "depth": {"a": [1, [2.5, None, 10**40]]}},
    ],
    ids=["tools", "others"],
)
def test_all_variables_and_fields_of_messages_are_seen_as_by_transformers(variables: dict[str, Any]) -> None:
    encoder = Encoder(setup(DEMO, SHOW_ALL))
    expected = DEMO.apply_chat_template(
        CALLS, chat_template=SHOW_ALL, return_dict=False, **{"add_generation_prompt": True, **variables}
    )
    assert ids(encoder.answer(chat(CALLS, **variables))) == expected


@pytest.mark.parametrize("reasoning", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_has_all_its_names(reasoning: str) -> None:
    template = "{{ messages[0].reasoning_content }}{{ messages[0].thinking }}"
    messages = [{"role": "assistant", "content": "a", reasoning: "why"}]
    expected = DEMO.apply_chat_template(messages, chat_template=template, return_dict=False)
    assert ids(Encoder(setup(DEMO, template)).answer(chat(messages))) == expected


TRIMMING = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>{% endfor %}"
PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }};{% endfor %}<end>{% endfor %}"


@pytest.mark.parametrize(
    ("template", "content"),
    [
        (DEMO.chat_template, "The cat sat "),
        (DEMO.chat_template, "sat"),
        (DEMO.chat_template, ""),
        (TRIMMING, " on the  "),
        (PARTS, [{"type": "text", "text": "the"}, {"type": "text", "text": "cat "}, {"type": "image"}]),
    ],
)
def test_the_last_message_is_continued_as_by_transformers(template: str, content: Any) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "sat"}] if template == PARTS else "sat"},
        {"role": "assistant", "content": content},
    ]
    expected = DEMO.apply_chat_template(
        messages, chat_template=template, continue_final_message=True, return_dict=False
    )
    assert ids(Encoder(setup(DEMO, template)).answer(chat(messages, True))) == expected


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        (DEMO.chat_template, [{"role": "assistant", "content": None}]),
        (PARTS, [{"role": "assistant", "content": [{"type": "image"}]}]),
        ("{{ messages | length }}", HELLO),
        ("{{ messages[-1].content[:2] }}CONTINUE_FINAL_MESSAGE_TAG ", HELLO),
    ],
)
def test_a_message_that_cannot_be_continued_is_refused(template: str, messages: Any) -> None:
    with pytest.raises(ValueError, match="continue_final_message"):
        DEMO.apply_chat_template(messages, chat_template=template, continue_final_message=True)
    assert isinstance(Encoder(setup(DEMO, template)).answer(chat(messages, True)), Refused)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "token"),
    [
        (DEMO.chat_template, "<|im_end|>"),
        (CHATML, "<|im_end|>"),
        (CHATML.replace("<|im_end|>", " <|im_end|>"), "<|im_end|>"),
        # It always opens the next answer.
        (CHATML.replace("{% if add_generation_prompt %}", "{% if true %}"), "<|im_end|>"),
        # A model that has learned this writes the next message's beginning.
        (
            CHATML.replace("<|im_end|>\n", "").replace("{% if add_generation_prompt %}", "{% if true %}"),
            "<|im_start|>",
        ),
        (CHATML.replace("<|im_end|>", ""), None),
        (
            "{% for m in messages %}{{ m.content }}{{ '<|im_end|>' if m.role == 'user' }}{% endfor %}",
            None,
        ),
        ("the same for all<|im_end|>", None),
    ],
)
def test_the_token_that_ends_a_message(template: str, token: str | None) -> None:
    found = ids(Encoder(setup(DEMO, template)).answer(FindEndOfTurn("default")))
    special = [each for each in found if DEMO.added_tokens_decoder.get(each)]
    assert special == ([] if token is None else [DEMO.convert_tokens_to_ids(token)])


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no') }}", "{{ 1 + messages }}", "{% if messages[1] %}{{ 1 // 0 }}{% endif %}"],
)
def test_a_template_that_does_not_show_how_a_message_ends(template: str) -> None:
    answer = Encoder(setup(DEMO, template)).answer(FindEndOfTurn("default"))
    assert isinstance(answer, Failed | Refused)


def test_the_environment_of_templates_is_transformers_own() -> None:
    """A failure means that transformers gives templates something new: add it to template.py."""
    theirs: Any = chat_template_utils._compile_jinja_template("")
    ours = environment()
    assert type(ours) is type(theirs.environment)
    assert set(ours.globals) == set(theirs.environment.globals)
    assert set(ours.filters) == set(theirs.environment.filters)
    assert set(ours.tests) == set(theirs.environment.tests)
    tags = [
        {tag for extension in each.extensions.values() for tag in extension.tags}
        for each in (ours, theirs.environment)
    ]
    assert tags[0] == tags[1]


@pytest.mark.parametrize("add_special_tokens", [True, False])
@given(text=st.text(max_size=40) | st.lists(st.sampled_from(["<|im_end|>", " the", "a", "\n"])).map("".join))
def test_a_text_is_encoded_as_by_transformers(text: str, add_special_tokens: bool) -> None:
    answer = DEMO_ENCODER.answer(EncodeText(text, add_special_tokens))
    assert ids(answer) == DEMO.encode(text, add_special_tokens=add_special_tokens)


DEMO_ENCODER = Encoder(setup(DEMO))


@pytest.mark.parametrize("add_special_tokens", [True, False])
@pytest.mark.parametrize("split", [True, False])
def test_special_tokens_are_encoded_as_by_transformers(add_special_tokens: bool, split: bool) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2, "<s>": 3}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.normalizer = normalizers.Lowercase()
    words.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 3)])
    words.enable_truncation(2)
    words.enable_padding(length=8)
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(tokenizer_object=words, bos_token="<s>", unk_token="?", split_special_tokens=split)
    answer = Encoder(setup(tokenizer)).answer(EncodeText("A b <s> c b a", add_special_tokens))
    assert ids(answer) == tokenizer.encode("A b <s> c b a", add_special_tokens=add_special_tokens)


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ 1 + messages }}", "TypeError: unsupported operand"),
        ("{{ messages[0].no.such }}", "UndefinedError: "),
        ("{% for %}", "TemplateSyntaxError: "),
        ("{{ '' .__class__.__mro__ }}", "SecurityError: "),
        ("{% set ns = namespace(_a=1) %}", "SecurityError: "),
        ("{{ 1 // 0 }}", "ZeroDivisionError: "),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "RecursionError: "),
        ("{{ range(10000000) }}", "OverflowError: "),
        ("{{ 'a' * 17000000 }}", "it wrote 17000000 characters, and 16777216 are allowed"),
        ("{{ '\\ud800' | tojson }}", ""),
    ],
)
def test_a_template_that_fails(template: str, error: str) -> None:
    answer = rendered(template)
    assert isinstance(answer, Failed), answer
    assert answer.error.startswith(error), answer


def test_a_template_that_refuses() -> None:
    assert rendered("{{ raise_exception('no ' + messages[0].role) }}") == Refused("no system")
    long = rendered("{{ raise_exception('a' * 10000) }}")
    assert isinstance(long, Refused)
    assert len(long.reason) == encoder._MAX_ERROR


WRITE = "{% for m in messages %}{{ m.role[0] }}({{ m.content }}){% endfor %}"
STRICT = """
{%- for m in (messages[1:] if messages[0].role == "system" else messages) %}
    {%- if (m.role == "user") != (loop.index0 % 2 == 0) %}{{ raise_exception("must alternate") }}{% endif %}
{%- endfor %}"""
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + STRICT


@pytest.mark.parametrize(
    ("template", "messages", "text"),
    [
        (STRICT, "s(a) s(b) u(c)", "s(a\n\nb)u(c)"),
        (STRICT, "s(a) u(b) s(c) a(d) a(e) u(f) s(g)", "s(a)u(b\n\nc)a(d\n\ne)u(f\n\ng)"),
        (STRICT, "u(a) u(b)", "u(a\n\nb)"),
        (NO_SYSTEM, "s(a) u(b) a(c) u(d)", "u(a\n\nb)a(c)u(d)"),
        # What a template takes stays as it is.
        ("", "u(a) u(b) s(c)", "u(a)u(b)s(c)"),
    ],
)
def test_a_strict_template_gets_simpler_messages(template: str, messages: str, text: str) -> None:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    asked = [{"role": roles[each[0]], "content": each[2:-1]} for each in messages.split()]
    assert ids(Encoder(setup(DEMO, template + WRITE)).answer(chat(asked))) == DEMO.encode(text)


def test_a_strict_template_s_own_reason_is_told() -> None:
    images = [{"role": "user", "content": [{"type": "image"}]}] * 2
    assert Encoder(setup(DEMO, STRICT)).answer(chat(images)) == Refused("must alternate")


def test_a_tokenizer_that_panics() -> None:
    slow = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    slow.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$|b"), "isolated")
    fast: Any = PreTrainedTokenizerFast
    answer = Encoder(setup(fast(tokenizer_object=slow))).answer(EncodeText("a" * 28 + "c", False))
    assert answer == Failed(
        "tokenizer", "PanicException: Onig: Regex search error: retry-limit-in-match over"
    )

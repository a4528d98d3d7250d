"""Prompts are encoded as transformers does it, and whatever a template or a tokenizer does is an answer."""

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


def rendered(template: str) -> Answer:
    return Encoder(setup(DEMO, template)).answer(EncodeChat("default", HELLO))


@pytest.mark.parametrize("template", [DEMO.chat_template, EVERY_FEATURE], ids=["demo", "every feature"])
def test_a_chat_is_encoded_as_by_transformers(template: str) -> None:
    expected = DEMO.apply_chat_template(
        HELLO, chat_template=template, add_generation_prompt=True, return_dict=False
    )
    assert ids(rendered(template)) == expected


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


def test_a_tokenizer_that_panics() -> None:
    slow = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    slow.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$|b"), "isolated")
    fast: Any = PreTrainedTokenizerFast
    answer = Encoder(setup(fast(tokenizer_object=slow))).answer(EncodeText("a" * 28 + "c", False))
    assert answer == Failed(
        "tokenizer", "PanicException: Onig: Regex search error: retry-limit-in-match over"
    )

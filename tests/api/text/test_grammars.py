"""What an answer has to match becomes a grammar in a process that can be ended, or a reason why not."""

import asyncio
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from control_plane.api.text import prompts
from control_plane.api.text.codec import TextCodec
from control_plane.api.text.prompts import PromptEncoder
from control_plane.api.text.request import Structure
from control_plane.api.text.worker.grammars import Grammars
from control_plane.errors import BadRequest
from control_plane.partition.checkpoint.stored_tokenizer import ModelTokenizer
from tests.support.models.tool_models import QWEN3, tool_tokenizer
from tests.support.paths import DEMO_MODEL

grammars = Grammars(Tokenizer(models.BPE()))


@pytest.mark.parametrize(
    ("kind", "value", "problem"),
    [
        (
            "json_schema",
            {"properties": {"a": {"items": {"not": {}}}}},
            'at $.properties.a.items: Unimplemented keys: ["not"]',
        ),
        (
            "json_schema",
            {"$defs": {"x": {"contains": 1}}, "$ref": "#/$defs/x"},
            "at $.$defs.x: Un",
        ),
        ("json_schema", {"anyOf": [{}, {"type": "nope"}]}, "at $.anyOf[1]: Invalid type: nope"),
        ("json_schema", {"$ref": "#/$defs/none"}, "at $: Pointer '/$defs/none' does not exist"),
        ("json_schema", {"$ref": "file:///etc/passwd"}, "at $: "),
        ("json_schema", [], "a schema is an object"),
        ("json_schema", False, "a schema is an object"),
        ("json_schema", {"type": "integer", "minimum": 5, "maximum": 1}, "at $: Unsatisfiable"),
        ("json_schema", {"$ref": "#"}, "at $: "),
        ("regex", "(a", "unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("grammar", "start: b", 'at 1(8): unknown name: "b"'),
        ("grammar", "root ::= (", "Expected ')' at line 1"),
        ("grammar", "", ""),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_its_place(kind: str, value: Any, problem: str) -> None:
    with pytest.raises(BadRequest) as refused:
        grammars.grammar(kind, value, "field")
    assert str(refused.value).startswith("field: ")
    assert problem in str(refused.value)
    assert "%llguidance" not in str(refused.value)


def test_a_schema_s_own_options_do_not_count() -> None:
    schema = {"type": "object", "x-guidance": {"whitespace_pattern": "[ ]*"}}
    assert grammars.grammar("json_schema", schema, "") == grammars.grammar("json_object", None, "")


@pytest.mark.parametrize("mark", ["<|im_end|>", "<[263]>", "<[250-263, 5]>", "<[^5]>", "<[*]>"])
def test_a_grammar_may_name_the_model_s_tokens(mark: str) -> None:
    ours = Grammars(tool_tokenizer(QWEN3).backend_tokenizer)
    grammar = f'start: "a" {mark} "b"'
    assert ours.grammar("grammar", grammar, "field") == grammar
    with pytest.raises(BadRequest, match="field: "):
        ours.grammar("grammar", "start: <|no_token|>", "field")


def test_what_demands_nothing_compiles() -> None:
    schema = {"properties": {"a": {"type": "string", "format": "path"}}}
    assert "path" not in grammars.grammar("json_schema", schema, "")


def test_processes_make_grammars_and_end_when_one_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "GRAMMAR_SECONDS", 0.5)
    tokenizer: Any = AutoTokenizer.from_pretrained(DEMO_MODEL)
    slow = Structure("choice", "field", [f"choice {number}" for number in range(100_000)])

    async def run() -> None:
        codec = TextCodec(ModelTokenizer.of(tokenizer), len(tokenizer))
        async with PromptEncoder.running(codec, workers=1) as encoder:
            with pytest.raises(BadRequest, match=r"field: compiling it did not finish within 0\.5 s"):
                await encoder.grammar(slow)
            with pytest.raises(BadRequest, match="unclosed group") as refused:
                await encoder.grammar(Structure("regex", "field", "(a"))
            assert refused.value.param == "field"
            assert await encoder.grammar(Structure("choice", "field", ["a", "b"])) == 'start: "a" | "b"'

    asyncio.run(run())

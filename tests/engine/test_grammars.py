"""A model that knows nothing gives answers that match a grammar, and others are as before.

`SCHEMAS=1000 pytest --timeout 900 -k random tests/engine/test_grammars.py` tries 1000 schemas instead of 80.
"""

import asyncio
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from tokenizers import Tokenizer, models

from control_plane.api.text.worker.grammars import Grammars
from control_plane.engine.grammar import matcher as matcher_module
from control_plane.engine.grammar.compiler import GrammarCompiler
from control_plane.engine.grammar.vocabulary import vocabulary_of
from control_plane.engine.state.sequence import FinishReason, SamplingParams, Sequence
from control_plane.errors import BadRequest
from control_plane.partition.checkpoint.stored_tokenizer import ModelTokenizer
from control_plane.partition.manifest import Manifest
from tests.support.api.api_server import in_thread
from tests.support.api.schemas import Schema, drawn
from tests.support.models.tiny_engine import Reference, all_tokens_of, engine_behind, idle
from tests.support.running import Served, served

pytestmark = pytest.mark.slow

MAX_TOKENS = 1000
PARAMS = SamplingParams(MAX_TOKENS, temperature=1.0, seed=1)
PROMPT = [40, 50, 60]
BATCH = 8
"""Schemas whose answers one request gets."""
grammars = Grammars(Tokenizer(models.BPE()))


@pytest.fixture(scope="module")
def schemas() -> list[Schema]:
    """Random schemas, the same ones each time."""
    return drawn(int(os.environ.get("SCHEMAS", "80")))


@pytest.fixture(scope="module")
def serving(chat_partition: Path) -> Iterator[Served]:
    with in_thread(served(chat_partition, max_sequences=BATCH)) as serving:
        yield serving


@pytest.fixture(scope="module")
def compiler(serving: Served, tokenizer: Any) -> GrammarCompiler:
    size = serving.runner.model.sizes.vocab_size
    return GrammarCompiler(vocabulary_of(ModelTokenizer.of(tokenizer), size, serving.engine.eos_ids))


def sequence(
    compiler: GrammarCompiler, kind: str | None = None, value: Any = None, params: SamplingParams = PARAMS
) -> Sequence:
    """A sequence whose answer has to match, if a kind is given."""
    made = Sequence("test", "tenant", list(PROMPT), params)
    if kind:
        made.matcher = compiler.compile(grammars.grammar(kind, value, "field"), "field")
    return made


def answers(serving: Served, sequences: list[Sequence]) -> list[list[int]]:
    """The tokens of all sequences, computed together."""

    async def run() -> list[list[int]]:
        return await all_tokens_of(serving.engine.submit(sequences))

    return asyncio.run(run())


def text(tokenizer: Any, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def test_answers_match_random_schemas(
    schemas: list[Schema], serving: Served, compiler: GrammarCompiler, tokenizer: Any
) -> None:
    for start in range(0, len(schemas), BATCH):
        # Greedy, as the model's logits are, and as if it had none.
        params = replace(PARAMS, temperature=(0.0, 1.0, 50.0)[start // BATCH % 3])
        some = schemas[start : start + BATCH]
        sequences = [sequence(compiler, "json_schema", schema, params) for schema in some]
        for schema, each, tokens in zip(some, sequences, answers(serving, sequences), strict=True):
            assert each.finish_reason == FinishReason.STOP
            answer = json.loads(text(tokenizer, tokens))
            jsonschema.validate(answer, schema, format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize(
    ("kind", "value", "matches"),
    [
        ("regex", "[0-9]{3}-[a-f]+x", None),
        ("choice", ["yes", "no", 'per"haps\n'], {"yes", "no", 'per"haps\n'}),
        ("grammar", 'start: "<call>" %json {"const": 1} "</call>"', {"<call>1</call>"}),
        ("grammar", 'root ::= "a" | "b"', {"a", "b"}),
    ],
)
def test_other_kinds(
    serving: Served,
    compiler: GrammarCompiler,
    tokenizer: Any,
    kind: str,
    value: Any,
    matches: set[str] | None,
) -> None:
    sequences = [sequence(compiler, kind, value, replace(PARAMS, seed=seed)) for seed in range(8)]
    for tokens in answers(serving, sequences):
        answer = text(tokenizer, tokens)
        assert answer in matches if matches else re.fullmatch(value, answer)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_without_a_grammar_are_as_before(
    serving: Served, compiler: GrammarCompiler, temperature: float
) -> None:
    params = replace(PARAMS, temperature=temperature, max_tokens=30, ignore_eos=True)
    (alone,) = answers(serving, [sequence(compiler, params=params)])
    held = replace(PARAMS, max_tokens=30)
    beside = [sequence(compiler, "json_schema", {"type": "string"}, held) for _ in range(3)]
    assert answers(serving, [*beside, sequence(compiler, params=params)])[-1] == alone


def test_a_sequence_that_gave_up_its_memory_goes_on_by_its_grammar(
    chat_partition: Path, serving: Served, compiler: GrammarCompiler, tokenizer: Any, unsplit: Any
) -> None:
    page_size = serving.runner.kv_cache.pages.page_size
    schema = {"type": "string", "minLength": 40, "maxLength": 50}
    reference = Reference(chat_partition, Manifest.load(chat_partition), unsplit)

    torch.set_num_threads(1)

    async def run() -> list[list[int]]:
        held = [sequence(compiler, "json_schema", schema) for _ in range(4)]
        for each in held:
            # Its answer begins at the end of a page, and there are pages for two answers.
            each.token_ids[:0] = [70] * (page_size - 5)
            each.num_prompt_tokens = len(each.token_ids)
            each.params = replace(PARAMS, max_tokens=page_size)
        async with engine_behind(
            serving.gateway_url,
            reference,
            num_pages=5,
            eos_ids=serving.engine.eos_ids,
            max_batch_tokens=4 * page_size,
        ) as engine:
            tokens = await all_tokens_of(engine.submit(held))
            assert engine.status().preemptions
            return tokens

    for tokens in asyncio.run(run()):
        jsonschema.validate(json.loads(text(tokenizer, tokens)), schema)


def test_an_answer_without_room_ends_by_its_length(serving: Served, compiler: GrammarCompiler) -> None:
    params = replace(PARAMS, max_tokens=5)
    each = sequence(compiler, "json_schema", {"type": "string", "minLength": 50}, params)
    (tokens,) = answers(serving, [each])
    assert len(tokens) == 5
    assert each.finish_reason == FinishReason.LENGTH


def test_an_answer_ends_with_its_grammar_whatever_else_is_asked(
    serving: Served, compiler: GrammarCompiler, tokenizer: Any
) -> None:
    params = replace(PARAMS, ignore_eos=True, min_tokens=50, logit_bias={97: -100.0, 5: 100.0})
    each = sequence(compiler, "choice", ["the cat"], params)
    (tokens,) = answers(serving, [each])
    assert text(tokenizer, tokens) == "the cat"
    assert tokens[-1] == tokenizer.eos_token_id
    assert each.finish_reason == FinishReason.STOP


def test_log_probabilities_are_those_before_the_grammar(serving: Served, compiler: GrammarCompiler) -> None:
    params = replace(PARAMS, logprobs=1, temperature=0.0)

    async def first(each: Sequence) -> Any:
        (logprob,) = [generated.logprob async for _, generated in serving.engine.submit([each])]
        return logprob

    free = asyncio.run(first(sequence(compiler, params=replace(params, max_tokens=1))))
    held = asyncio.run(first(sequence(compiler, "choice", ["z"], replace(params, max_tokens=1))))
    assert held.top == free.top
    assert held.logprob <= free.logprob


def test_a_grammar_that_takes_too_long_fails_its_own_request(
    serving: Served, compiler: GrammarCompiler, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(matcher_module, "FREE_SECONDS", -1.0)
        hostile = sequence(compiler, "regex", "[a-z]{20}")
    good = sequence(compiler, "choice", ["yes"], replace(PARAMS, seed=2))

    async def run() -> list[list[int]]:
        bad = serving.engine.submit([hostile])
        stream = serving.engine.submit([good])
        with pytest.raises(BadRequest, match="the answer cannot go on by it"):
            await all_tokens_of(bad)
        return await all_tokens_of(stream)

    (tokens,) = asyncio.run(run())
    assert text(tokenizer, tokens) == "yes"
    assert idle(serving.engine)

"""Answers of models with tools, from what they write to the pieces for clients."""

import json
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer

from control_plane.api.openai.requests import parse_chat
from control_plane.api.text.choice import Choice, Piece
from control_plane.api.text.codec import TextCodec
from control_plane.api.text.message import Message
from control_plane.api.text.request import GenerationRequest, SamplingDefaults, Structure, ToolUse
from control_plane.api.text.worker.grammars import Grammars
from control_plane.api.tools.model_format import ModelFormat
from control_plane.engine.grammar.compiler import GrammarCompiler
from control_plane.engine.grammar.vocabulary import vocabulary_of
from control_plane.engine.state.sequence import FinishReason, Generated, Sequence
from control_plane.partition.checkpoint.stored_tokenizer import ModelTokenizer
from tests.support.models.tool_models import tool_tokenizer

SCHEMA: Any = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"$ref": "#/$defs/days"},
        "units": {"type": "string", "enum": ["C", "F"]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}
TOOLS: tuple[Any, ...] = (
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "time"}},
)
MESSAGES: Any = [{"role": "user", "content": "What is <think> for?"}]


class Answers:
    """Answers of a model with a chat template."""

    def __init__(self, template: str, *, all_special: bool = False, **variables: Any) -> None:
        self.tokenizer: Any = tool_tokenizer(template, all_special=all_special)
        self.codec = TextCodec(ModelTokenizer.of(self.tokenizer), len(self.tokenizer))
        self.format = ModelFormat.of(self.codec)
        self.grammars = Grammars(self.tokenizer.backend_tokenizer)
        prompt = self.tokenizer.apply_chat_template(
            MESSAGES, add_generation_prompt=True, tokenize=False, **variables
        )
        self.prompt_ids: list[int] = self.tokenizer.encode(prompt)

    def request(self, use: ToolUse | None = None, **changes: Any) -> GenerationRequest:
        request = parse_chat({"messages": MESSAGES})
        return replace(request, tool_use=use, **changes)

    def pieces(
        self, written: str, use: ToolUse | None = None, end: bool = True, **changes: Any
    ) -> list[Piece]:
        """The pieces of what the model writes, one token each; it ends normally, or is cut."""
        request = self.request(use, **changes)
        params = request.sampling_params(1000, 0, SamplingDefaults())
        sequence = Sequence("id", "tenant", self.prompt_ids, params)
        splitter = self.format.splitter(request, 0, self.prompt_ids)
        choice = Choice(self.codec, request, sequence, 0, splitter)
        token_ids = self.tokenizer.encode(written) + [self.tokenizer.eos_token_id] * end
        found = []
        for number, token_id in enumerate(token_ids, start=1):
            reason = FinishReason.STOP if end else FinishReason.LENGTH
            found.append(choice.add(Generated(token_id, None, reason if number == len(token_ids) else None)))
            if found[-1].finish_reason:
                break
        return found

    def message(self, *args: Any, **named: Any) -> tuple[str, str, list[tuple[str, Any]], str]:
        """The thinking, the text, the calls and the end of an answer."""
        pieces = self.pieces(*args, **named)
        message = Message.of(pieces)
        calls = [(call.name, json.loads(call.arguments)) for call in message.tool_calls]
        return message.reasoning, message.text, calls, str(pieces[-1].finish_reason)

    def grammar(self, use: ToolUse, structure: Structure | None = None) -> str:
        """The grammar of an answer, as the server makes it."""
        make = self.grammars.grammar
        wanted = make(structure.kind, structure.value, structure.field) if structure else None
        grammar = self.format.grammar(self.request(use, structure=structure), 0, self.prompt_ids, wanted)
        assert grammar is not None
        return make("grammar", grammar, "tools")

    def accepts(self, written: str, use: ToolUse, structure: Structure | None = None) -> bool:
        """Whether the grammar lets the model write this, and end."""
        grammar = self.grammar(use, structure)
        matcher = LLMatcher(from_tokenizer(self.tokenizer, len(self.tokenizer)), grammar, log_level=0)
        assert not matcher.is_error(), (matcher.get_error(), grammar)
        taken = matcher.consume_tokens(self.tokenizer.encode(written))
        return bool(taken) and bool(matcher.is_accepting())

    def random_text(self, use: ToolUse, structure: Structure, seed: int, begin: str = "") -> str:
        """What a model that knows nothing writes after `begin`, held to the grammar by the masks."""
        end_id = self.tokenizer.eos_token_id
        vocabulary = vocabulary_of(self.codec.tokenizer, len(self.tokenizer), frozenset({end_id}))
        matcher = GrammarCompiler(vocabulary).compile(self.grammar(use, structure), "field")
        matcher.begin()
        first, choices = self.tokenizer.encode(begin), Random(seed)
        written: list[int] = []
        while True:
            mask = matcher.mask()
            assert mask is not None, matcher.error
            allowed = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")).tolist()
            token_id = first.pop(0) if first else choices.choice(allowed)
            assert token_id in allowed
            if token_id == end_id:
                return str(self.tokenizer.decode(written))
            written.append(token_id)
            matcher.accept(token_id)

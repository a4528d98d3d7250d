"""Turns prompts into tokens with a model's own tokenizer and chat templates, which are not trusted.

Schemas and grammars of requests are not trusted either, so they are compiled here, too.
"""

import json
from array import array
from functools import cache

from jinja2 import Template
from tokenizers import Tokenizer

from control_plane.api.text.worker.grammars import Grammars
from control_plane.api.text.worker.messages import (
    Answer,
    EncodeText,
    Failed,
    FindEndOfTurn,
    Grammar,
    MakeGrammar,
    Refused,
    Request,
    Setup,
    Tokens,
)
from control_plane.api.text.worker.rendering import Render, end_of_turn, rendered
from control_plane.api.text.worker.template import Refusal, environment
from control_plane.errors import BadRequest

MAX_TEXT = 16 << 20
"""The most characters that a template may write."""
_MAX_ERROR = 300
"""The most characters of an error that is passed on."""


class Encoder:
    """A model's tokenizer and chat templates."""

    def __init__(self, setup: Setup) -> None:
        self._tokenizer = Tokenizer.from_str(setup.tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = setup.split_special_tokens
        self._templates = setup.templates
        self._special_tokens = setup.special_tokens
        self._compiled = cache(self._compile)
        self._grammars = Grammars(self._tokenizer)

    def answer(self, request: Request) -> Answer:
        """The tokens of a prompt, or why there are none."""
        if isinstance(request, MakeGrammar):
            return self._grammar(request)
        if isinstance(request, EncodeText):
            return self._encode(request.text, request.add_special_tokens)
        try:
            if isinstance(request, FindEndOfTurn):
                return _tokens(end_of_turn(self._renderer(request.template), self._ids))
            variables = json.loads(request.variables)
            text = rendered(self._renderer(request.template), variables, request.continue_final_message)
        except Refusal as error:
            return Refused(str(error)[:_MAX_ERROR])
        # Templates come with the model, and can raise whatever Python can; the tokenizer can panic.
        except BaseException as error:
            return Failed("template", _described(error))
        if len(text) > MAX_TEXT:
            return Failed("template", f"it wrote {len(text)} characters, and {MAX_TEXT} are allowed")
        # The template writes the special tokens itself.
        return self._encode(text, add_special_tokens=False)

    def _encode(self, text: str, add_special_tokens: bool) -> Answer:
        try:
            return _tokens(self._ids(text, add_special_tokens))
        # The tokenizer's panics are not Exceptions; this process has nothing else to be ended by.
        except BaseException as error:
            return Failed("tokenizer", _described(error))

    def _grammar(self, request: MakeGrammar) -> Answer:
        try:
            return Grammar(self._grammars.grammar(request.kind, request.value, request.field))
        except BadRequest as error:
            return Refused(str(error))
        # The library's panics are not Exceptions.
        except BaseException as error:
            return Refused(f"{request.field}: {_described(error)}")

    def _ids(self, text: str, add_special_tokens: bool = False) -> list[int]:
        token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return token_ids

    def _renderer(self, name: str) -> Render:
        template = self._compiled(name)
        return lambda variables: template.render({**self._special_tokens, **variables})

    def _compile(self, name: str) -> Template:
        return environment().from_string(self._templates[name])


def _tokens(token_ids: list[int]) -> Tokens:
    return Tokens(array("I", token_ids).tobytes())


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_ERROR].encode(errors="replace").decode()

"""Finds out, from a chat template and a tokenizer, how a model writes thinking and tool calls."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from control_plane.api.text.codec import TextCodec
from control_plane.api.text.request import Chat, GenerationRequest, Prompt
from control_plane.api.tools.calls import CallSplitter
from control_plane.api.tools.formats.families import tool_format
from control_plane.api.tools.parsing.source import SPACE
from control_plane.api.tools.parsing.tool_format import ToolFormat
from control_plane.api.tools.splitter import Splitter, without
from control_plane.api.tools.thinking import ThinkingMarks, ThinkingSplitter, thinking_marks
from control_plane.api.tools.told_in_text import told_in_text
from control_plane.engine.grammar.lark import literal, rule, whole

logger = logging.getLogger(__name__)

_TAIL_TOKENS = 16
"""How many tokens at a prompt's end are searched for a mark that opens the thinking."""


@dataclass(frozen=True)
class ModelFormat:
    """The format of a model's thinking and tool calls."""

    codec: TextCodec
    tools: ToolFormat
    thinking: ThinkingMarks | None
    """None for a model that does not think."""
    shows_tools: bool
    """Whether the chat template shows tools to the model."""
    tokens: Mapping[str, int]
    """The ids of the marks that are single tokens, by their text."""
    special: Mapping[int, str]
    """The text of the marks that are special tokens, by their ids."""

    @classmethod
    def of(cls, codec: TextCodec) -> Self:
        """The format of the model with this tokenizer; logs it."""
        template = "\n".join(codec.tokenizer.chat_templates.values())
        tools, thinking = tool_format(template), thinking_marks(template)
        marks = {*tools.tokens, *((thinking.open, thinking.close) if thinking else ())}
        added = codec.tokenizer.added_tokens.items()
        if template:
            between = f"between {thinking.open} and {thinking.close}" if thinking else "not marked"
            logger.info("tool calls have the format %s, and thinking is %s", tools.name, between)
        return cls(
            codec=codec,
            tools=tools,
            thinking=thinking,
            shows_tools="tools" in template,
            tokens={str(token): token_id for token_id, token in added if str(token) in marks},
            special={
                token_id: str(token) for token_id, token in added if str(token) in marks and token.special
            },
        )

    def prompt(self, prompt: Prompt) -> Prompt:
        """The prompt, with the tools in its text if the chat template does not show them."""
        return told_in_text(prompt) if isinstance(prompt, Chat) and not self.shows_tools else prompt

    def splitter(self, request: GenerationRequest, index: int, prompt_ids: Sequence[int]) -> Splitter | None:
        """A splitter for answer number `index` to a request; None if the answer needs none.

        An answer with a structure and no tools has no thinking: it begins with the structure.
        """
        prompt = request.prompts[index // request.n]
        if not isinstance(prompt, Chat):
            return None
        use, thinking = request.tool_use, None
        if self.thinking and (use or not request.structure):
            thinking = ThinkingSplitter(self.thinking, self._begins_thinking(prompt, prompt_ids))
        if thinking is None and use is None:
            return None
        # A client that asks for special tokens as text gets the marks as well.
        special = self.special if request.skip_special_tokens else {}
        hide = partial(without, tokens=tuple(special.values()))
        # A structure may have the text of a mark within it.
        calls = CallSplitter(self.tools, use, request.structure is not None, hide) if use else None
        return Splitter(thinking, calls, special)

    def grammar(
        self, request: GenerationRequest, index: int, prompt_ids: Sequence[int], structure: str | None
    ) -> str | None:
        """A Lark grammar for answer number `index` to a request; None if it may be any text.

        `structure` is the grammar of the request's structure. An answer with tools has calls or, unless it
        has to call, the structure; the model may think first.
        """
        prompt, use = request.prompts[index // request.n], request.tool_use
        if not isinstance(prompt, Chat) or use is None or not (use.has_to_call or structure):
            return structure
        functions = [tool["function"] for tool in use.tools]
        named = [function for function in functions if function["name"] == use.choice]
        is_json = request.structure is not None and request.structure.kind.startswith("json")
        make = self.tools.grammar_beside_json if is_json and not use.has_to_call else self.tools.grammar
        calls = make(named or functions, self._token, use.parallel and not named)
        others = [whole(structure)] if structure and not use.has_to_call else []
        rules = rule("answer", ["calls", *others]) + calls
        if self.thinking is None:
            return rule("start", ["answer"]) + rules
        return self._thinking_rules(self.thinking, self._begins_thinking(prompt, prompt_ids)) + rules

    def _thinking_rules(self, marks: ThinkingMarks, opened: bool) -> str:
        """Rules for thinking before the answer, which is optional unless the prompt has opened it."""
        start = "thought answer" if opened else f"answer | {self._token(marks.open)} thought answer"
        close = self._token(marks.close)
        if marks.close in self.tokens:
            thought = f"thought: /(?s:.*)/ {close} space\n"
        else:
            thought = f"thought: until_close space\nuntil_close[suffix={close}]: /(?s:.*)/\n"
        return f"start: {start}\n{thought}space: /[ \\n]{{0,4}}/\n"

    def _token(self, mark: str) -> str:
        return f"<[{self.tokens[mark]}]>" if mark in self.tokens else literal(mark)

    def _begins_thinking(self, chat: Chat, prompt_ids: Sequence[int]) -> bool:
        """Whether the prompt has opened the thinking, so that the answer begins inside it."""
        if self.thinking is None:
            return False
        if chat.continue_final_message:
            content = str(chat.messages[-1].get("content"))
            return content.rfind(self.thinking.open) > content.rfind(self.thinking.close)
        tail = "".join(map(self.codec.token_text, prompt_ids[-_TAIL_TOKENS:]))
        return tail.rstrip(SPACE).endswith(self.thinking.open)

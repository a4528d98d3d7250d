"""Finds out, from a chat template and a tokenizer, how a model writes thinking and tool calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from control_plane.api.text.codec import TextCodec
from control_plane.api.text.request import Chat, GenerationRequest, Prompt
from control_plane.api.tools.calls import CallSplitter
from control_plane.api.tools.formats.families import tool_format
from control_plane.api.tools.parsing.grammar import literal
from control_plane.api.tools.parsing.source import SPACE
from control_plane.api.tools.parsing.tool_format import ToolFormat
from control_plane.api.tools.splitter import Splitter, without
from control_plane.api.tools.thinking import ThinkingMarks, ThinkingSplitter, thinking_marks
from control_plane.api.tools.told_in_text import told_in_text

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
        """The format of the model with this tokenizer."""
        templates = codec.tokenizer.chat_template or ""
        template = templates if isinstance(templates, str) else "\n".join(templates.values())
        tools, thinking = tool_format(template), thinking_marks(template)
        marks = {*tools.tokens, *((thinking.open, thinking.close) if thinking else ())}
        added = codec.tokenizer.added_tokens_decoder.items()
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

    def prompt(self, request: GenerationRequest, prompt: Prompt) -> Prompt:
        """A prompt of the request, with the tools in its text if the chat template does not show them."""
        if self.shows_tools or not isinstance(prompt, Chat):
            return prompt
        return told_in_text(prompt, request.tool_use.tools if request.tool_use else ())

    def splitter(self, request: GenerationRequest, index: int, prompt_ids: Sequence[int]) -> Splitter | None:
        """A splitter for answer number `index` to a request; None if the answer needs none.

        An answer with a structure has no thinking: it begins with the structure.
        """
        prompt = request.prompts[index // request.n]
        if not isinstance(prompt, Chat):
            return None
        thinking = None
        if self.thinking and not request.structure:
            thinking = ThinkingSplitter(self.thinking, self._begins_thinking(prompt, prompt_ids))
        use = request.tool_use
        if thinking is None and use is None:
            return None
        # A client that asks for special tokens as text gets the marks as well.
        special = self.special if request.skip_special_tokens else {}
        hide = partial(without, tokens=tuple(special.values()))
        return Splitter(thinking, CallSplitter(self.tools, use, hide) if use else None, special)

    def grammar(self, request: GenerationRequest, index: int, prompt_ids: Sequence[int]) -> str | None:
        """A Lark grammar for an answer that has to call a tool; None for other answers.

        It allows the model to think first.
        """
        prompt, use = request.prompts[index // request.n], request.tool_use
        if not isinstance(prompt, Chat) or use is None or use.choice == "auto":
            return None
        tools = [tool["function"] for tool in use.tools]
        if use.choice != "required":
            tools = [tool for tool in tools if tool["name"] == use.choice]
        several = use.parallel and use.choice == "required"
        calls = self.tools.grammar(tools, self._token, several)
        if self.thinking is None:
            return "start: calls\n" + calls
        opened = self._begins_thinking(prompt, prompt_ids)
        return self._thinking_rules(self.thinking, opened) + calls

    def _thinking_rules(self, marks: ThinkingMarks, opened: bool) -> str:
        """Rules for an answer that thinks before its calls, or may do so if the prompt has not opened it."""
        start = "thought calls" if opened else f"calls | {self._token(marks.open)} thought calls"
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

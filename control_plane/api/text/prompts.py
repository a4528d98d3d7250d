"""Turns prompts into tokens, in processes that are ended when they take too long.

A checkpoint brings a chat template, which is a program, and a tokenizer, whose regular expressions may take
for ever. Neither may hold up the control plane.
"""

import asyncio
import logging
from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any, Self

from control_plane.api.text.chat_request import chat_request, utf8
from control_plane.api.text.codec import TextCodec
from control_plane.api.text.request import Chat, Prompt, Structure
from control_plane.api.text.worker.messages import (
    Answer,
    EncodeChat,
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
from control_plane.api.text.worker.process import WorkerEnded, WorkerProcess
from control_plane.errors import BadRequest, PartitionError, ShuttingDown, TokenizerError
from control_plane.partition.checkpoint.stored_tokenizer import DEFAULT_TEMPLATE
from functions.host.memory import memory_sizes

logger = logging.getLogger(__name__)

WORKERS = 2
"""A tenant's prompts are encoded one after the other: another tenant finds a free process."""
ENCODE_SECONDS = 10.0
"""The longest that a prompt may take. 4 MB of text take 5 s."""
GRAMMAR_SECONDS = 2.0
"""The longest that a grammar may take to compile. Few take 10 ms."""
_WORK = {EncodeText: "encoding it", EncodeChat: "the chat template", MakeGrammar: "compiling it"}
_ORPHAN_SECONDS = int(ENCODE_SECONDS) + 5
_MEMORY_BYTES = 1 << 30
"""The most memory for one prompt: a million tokens take half of it."""
_TOOL_USE = "tool_use"
_TOOL = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {}}}
_TRIALS: Sequence[tuple[str, list[dict[str, Any]]]] = (
    ("a message", [{"role": "user", "content": "Hello"}]),
    ("a system message", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]),
)
_NO_TEMPLATE = "this model has no chat template"
_INSTEAD = "use /v1/completions, or `faasmoe prompt --raw`"


class PromptEncoder:
    """Encodes prompts with the model's tokenizer and chat template."""

    def __init__(self, codec: TextCodec, workers: int, seconds: float) -> None:
        templates = _templates(codec.tokenizer.chat_templates)
        self.end_of_turn_ids: frozenset[int] = frozenset()
        """The special tokens that the chat templates write after an assistant's message."""
        self.chat_problem = "" if DEFAULT_TEMPLATE in templates else _NO_TEMPLATE
        """Why chats are refused; "" if they are not."""
        self._codec = codec
        self._templates = templates
        self._seconds = seconds
        self._all = [WorkerProcess(self._setup) for _ in range(workers)]
        self._idle: asyncio.Queue[WorkerProcess] = asyncio.Queue()
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def running(
        cls, codec: TextCodec, workers: int = WORKERS, seconds: float = ENCODE_SECONDS
    ) -> AsyncIterator[Self]:
        """Start the processes and try the templates. Raises `PartitionError` if a process cannot start."""
        encoder = cls(codec, workers, seconds)
        try:
            await encoder._start()
            yield encoder
        finally:
            encoder._closed = True
            await asyncio.gather(*(worker.stop() for worker in encoder._all))

    async def encode(self, prompt: Prompt, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a prompt. `add_special_tokens` is for texts: a chat template writes its own.

        Raises `BadRequest` if the prompt is at fault, empty or takes too long, and `TokenizerError`.
        """
        if isinstance(prompt, list):
            token_ids = prompt
        elif isinstance(prompt, str):
            utf8(prompt)  # It raises an error for text that the other process could not read.
            token_ids = _tokens(await self._ask(EncodeText(prompt, add_special_tokens), "prompt"))
        else:
            token_ids = await self._encode_chat(prompt)
        if not token_ids:
            raise BadRequest("prompt: it is empty", "prompt")
        self._codec.check(token_ids, "prompt")
        return token_ids

    async def grammar(self, structure: Structure) -> str:
        """A Lark grammar for a structure, which is known to compile within `GRAMMAR_SECONDS`.

        Raises `BadRequest` if the structure is not valid, or if compiling takes too much time or memory.
        """
        field = structure.field
        request = MakeGrammar(structure.kind, structure.value, field)
        try:
            answer = await self._ask(request, field)
        except TokenizerError as error:
            raise BadRequest(f"{field}: compiling it failed", field) from error
        if isinstance(answer, Grammar):
            return answer.text
        reason = answer.reason if isinstance(answer, Refused) else f"{field}: compiling it failed"
        raise BadRequest(reason, field)

    def memory_bytes(self) -> int:
        """The memory of the processes."""
        return sum(_memory(worker.pid) for worker in self._all if worker.pid is not None)

    async def _encode_chat(self, chat: Chat) -> list[int]:
        if self.chat_problem:
            raise BadRequest(f"messages: {self.chat_problem}; {_INSTEAD}", "messages")
        name = _TOOL_USE if chat.tools and _TOOL_USE in self._templates else DEFAULT_TEMPLATE
        return _tokens(await self._ask(chat_request(chat, name), "messages"))

    async def _start(self) -> None:
        try:
            await asyncio.gather(*(worker.start() for worker in self._all))
        except (OSError, WorkerEnded) as error:
            raise PartitionError(f"the process for the model's tokenizer does not start: {error}") from error
        for worker in self._all:
            self._idle.put_nowait(worker)
        found = [await self._try(name) for name in self._templates]
        self.end_of_turn_ids = frozenset(filter(self._codec.is_special, chain(*found)))

    async def _try(self, name: str) -> list[int]:
        """Try a template, and log why it does not work; returns the token that ends a turn, if any."""
        tools = [_TOOL] if name == _TOOL_USE else None
        for kind, messages in _TRIALS:
            problem = await self._problem(chat_request(Chat(messages, tools), name))
            if problem:
                logger.warning("the chat template %s does not work for %s: %s", name, kind, problem)
                if kind == _TRIALS[0][0]:
                    if name == DEFAULT_TEMPLATE:
                        self.chat_problem = f"this model's chat template does not work: {problem}"
                    return []
                break
        # If a template refuses or fails on an assistant's message, its end of a turn stays unknown.
        try:
            answer = await self._ask(FindEndOfTurn(name), "messages")
        except (BadRequest, TokenizerError):
            return []
        return _tokens(answer) if isinstance(answer, Tokens) else []

    async def _problem(self, request: EncodeChat) -> str:
        """Why a template does not work; "" if it does. It may refuse messages, such as a system's."""
        try:
            answer = await self._ask(request, "messages")
        except (BadRequest, TokenizerError) as error:
            return str(error)
        return answer.error if isinstance(answer, Failed) else ""

    async def _ask(self, request: Request, param: str) -> Answer:
        worker = await self._idle.get()
        seconds = min(self._seconds, GRAMMAR_SECONDS if isinstance(request, MakeGrammar) else self._seconds)
        try:
            if self._closed:
                raise ShuttingDown
            return await worker.ask(request, seconds)
        except TimeoutError as error:
            what = _WORK[type(request)]
            logger.warning("%s took more than %g s, and was ended", what, seconds)
            raise BadRequest(f"{param}: {what} did not finish within {seconds:g} s", param) from error
        except (OSError, WorkerEnded) as error:
            if self._closed:
                raise ShuttingDown from error
            raise TokenizerError(f"the tokenizer's process has failed: {error}") from error
        finally:
            self._idle.put_nowait(worker)

    def _setup(self) -> Setup:
        tokenizer = self._codec.tokenizer
        return Setup(
            tokenizer=tokenizer.backend.to_str(),
            split_special_tokens=tokenizer.split_special_tokens,
            templates=self._templates,
            special_tokens=tokenizer.special_tokens,
            orphan_seconds=_ORPHAN_SECONDS,
            memory_bytes=_MEMORY_BYTES,
        )


def _templates(templates: Mapping[str, str]) -> Mapping[str, str]:
    """Those of a model's chat templates that are used, by name.

    If none of several is the default, the one for tools is, or else the first by name.
    """
    named = {name: template for name, template in sorted(templates.items()) if template}
    if named and DEFAULT_TEMPLATE not in named:
        name = _TOOL_USE if _TOOL_USE in named else next(iter(named))
        logger.warning("no chat template of this model is the default: %s is used", name)
        named[DEFAULT_TEMPLATE] = named[name]
    return {name: named[name] for name in (DEFAULT_TEMPLATE, _TOOL_USE) if name in named}


def _tokens(answer: Answer) -> list[int]:
    """Raises `BadRequest` for messages that the template does not take, and `TokenizerError`."""
    if isinstance(answer, Tokens):
        return array("I", answer.ids).tolist()
    if isinstance(answer, Refused):
        raise BadRequest(f"messages: the chat template refuses them: {answer.reason}", "messages")
    assert isinstance(answer, Failed)
    logger.warning("the %s has failed on a prompt: %s", answer.part, answer.error)
    if answer.part == "template":
        raise BadRequest(f"messages: the chat template fails on them: {answer.error}", "messages")
    raise TokenizerError(f"the tokenizer has failed: {answer.error}")


def _memory(pid: int) -> int:
    """The memory of a process in bytes; 0 if it has just ended."""
    try:
        return memory_sizes(pid).get("Pss", 0)
    except OSError:
        return 0

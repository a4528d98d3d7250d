"""Processes encode prompts: they are ended when they take too long, and replaced however they end."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from msgspec.structs import replace
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from control_plane.api.bodies.json_values import MAX_DEPTH
from control_plane.api.text.codec import TextCodec
from control_plane.api.text.prompts import PromptEncoder
from control_plane.api.text.request import Chat
from control_plane.errors import BadRequest, PartitionError, TokenizerError
from control_plane.partition.checkpoint.stored_tokenizer import ModelTokenizer
from tests.support.gateways.echo_gateway import asynchronous
from tests.support.paths import DEMO_MODEL, ROOT

SECONDS = 0.5
"""The time limit of tests that wait for it."""
HELLO = Chat([{"role": "user", "content": "hello"}])
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
LOOP_ON_REQUEST = "{{ messages[-1].content }}{% if messages[-1].content == 'loop' %}" + LOOP + "{% endif %}"

ORPHANED = """
import asyncio, sys
from transformers import AutoTokenizer
from control_plane.api.text.codec import TextCodec
from control_plane.api.text.prompts import PromptEncoder
from control_plane.partition.checkpoint.stored_tokenizer import ModelTokenizer

async def main():
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    async with PromptEncoder.running(TextCodec(ModelTokenizer.of(tokenizer), 1 << 20)) as encoder:
        print(*(worker.pid for worker in encoder._all), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def demo(template: Any = None) -> Any:
    tokenizer: Any = AutoTokenizer.from_pretrained(DEMO_MODEL)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def panicking() -> Any:
    """A tokenizer that panics on many `a` in a row."""
    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$|b"), "isolated")
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=words, unk_token="?")


@asynccontextmanager
async def running(tokenizer: Any, workers: int = 1, seconds: float = 30.0) -> AsyncIterator[PromptEncoder]:
    codec = TextCodec(ModelTokenizer.of(tokenizer), len(tokenizer))
    async with PromptEncoder.running(codec, workers, seconds) as encoder:
        yield encoder


def pids(encoder: PromptEncoder) -> list[int | None]:
    return [worker.pid for worker in encoder._all]


@asynchronous
async def test_prompts_are_encoded_as_by_transformers() -> None:
    tokenizer = demo()
    async with running(tokenizer) as encoder:
        expected = tokenizer.apply_chat_template(
            HELLO.messages, add_generation_prompt=True, return_dict=False
        )
        assert await encoder.encode(HELLO) == expected
        long = "the cat " * 20_000
        assert await encoder.encode(long) == tokenizer.encode(long)
        for add in (True, False):
            assert await encoder.encode("a", add) == tokenizer.encode("a", add_special_tokens=add)
        assert await encoder.encode([3, 4]) == [3, 4]


@pytest.mark.parametrize(
    "prompt", ["", [], [-1], [1 << 70], [1 << 20], "\ud83d", Chat([{"role": "user", "content": "\ude00"}])]
)
@asynchronous
async def test_bad_prompts(prompt: Any) -> None:
    async with running(demo()) as encoder:
        with pytest.raises(BadRequest):
            await encoder.encode(prompt)


NESTED = {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": {"a": "\ud83d"}}}]}


def deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("chat", "problem"),
    [
        (Chat([NESTED]), "not Unicode"),
        (Chat([{"role": "user", "\ud83d": "a"}]), "not Unicode"),
        (Chat(HELLO.messages, tools=[{"name": "\ude00"}]), "not Unicode"),
        (Chat(HELLO.messages, documents=[{"text": "\ude00"}]), "not Unicode"),
        (Chat(HELLO.messages, template_variables={"a": {"b": ["\ude00"]}}), "not Unicode"),
        (Chat(HELLO.messages, template_variables={"a": deep(MAX_DEPTH)}), "more than 64 lists and objects"),
        (Chat([{"role": "user", "content": deep(5000)}]), "more than 64 lists and objects"),
        (Chat([{"role": "user", "content": "a" * (16 << 20)}]), "bytes, and 16777216 are allowed"),
        (Chat([], continue_final_message=True), "the last message has no text that can be continued"),
    ],
    ids=range(9),
)
@asynchronous
async def test_chats_that_are_refused(chat: Chat, problem: str) -> None:
    async with running(demo()) as encoder:
        with pytest.raises(BadRequest, match=problem):
            await encoder.encode(chat)


@asynchronous
async def test_a_chat_s_fields_reach_the_template() -> None:
    template = (
        "{{ tools[0].name }}{{ documents[0].text }}{{ thinking }}{{ add_generation_prompt }}{{ messages }}"
    )
    tokenizer = demo(template)
    messages = [{"role": "user", "content": None, "id": 10**40}, {"role": "assistant", "content": deep(50)}]
    chat = Chat(messages, [{"name": "f"}], [{"text": "d"}], {"thinking": False}, add_generation_prompt=False)
    expected = tokenizer.apply_chat_template(
        messages, tools=chat.tools, documents=chat.documents, thinking=False, return_dict=False
    )
    async with running(demo("{% if tools %}" + template + "{% endif %}ok")) as encoder:
        assert await encoder.encode(chat) == [*expected, *tokenizer.encode("ok")]


@asynchronous
async def test_a_message_is_continued() -> None:
    tokenizer = demo()
    messages = [*HELLO.messages, {"role": "assistant", "content": "The cat"}]
    expected = tokenizer.apply_chat_template(messages, continue_final_message=True, return_dict=False)
    async with running(tokenizer) as encoder:
        assert await encoder.encode(Chat(messages, continue_final_message=True)) == expected


@pytest.mark.parametrize(
    ("templates", "plain", "with_tools"),
    [
        ({"default": "a", "tool_use": "{{ tools[0].type }}"}, "a", "function"),
        ({"default": "a", "rag": "b"}, "a", "a"),
        ({"tool_use": "a", "rag": "b"}, "a", "a"),
        ({"chat": "a"}, "a", "a"),
        ({"rag": "a", "chat": "b"}, "b", "b"),
        ({"default": "", "tool_use": "a"}, "a", "a"),
    ],
)
@asynchronous
async def test_which_template_is_used(templates: Any, plain: str, with_tools: str) -> None:
    tokenizer = demo(templates)
    async with running(tokenizer) as encoder:
        assert await encoder.encode(HELLO) == tokenizer.encode(plain)
        chat = Chat(HELLO.messages, [{"type": "function"}])
        assert await encoder.encode(chat) == tokenizer.encode(with_tools)


@asynchronous
async def test_the_end_of_a_message_is_found_at_the_start() -> None:
    end = demo().convert_tokens_to_ids("<|im_end|>")
    body = "{% for m in messages %}{{ m.content }}"
    for template, expected in [
        (None, {end}),
        (body + "<|im_end|>{% endfor %}", {end}),
        ({"default": body + "{% endfor %}", "tool_use": body + "<|im_end|>{% endfor %}"}, {end}),
        (body + " the{% endfor %}", set()),
        (body + "{{ 1 // 0 if m.role == 'assistant' }}<|im_end|>{% endfor %}", set()),
        ("", set()),
    ]:
        async with running(demo(template)) as encoder:
            assert encoder.end_of_turn_ids == expected, template


@asynchronous
async def test_the_processes_are_small_and_end_with_the_context() -> None:
    async with running(demo(), workers=2) as encoder:
        found = pids(encoder)
        await encoder.encode("a b " * 250_000)
        assert 10 << 20 < encoder.memory_bytes() < 2 * 40 << 20
        assert "torch" not in Path(f"/proc/{found[0]}/maps").read_text()
    assert not any(psutil.pid_exists(pid) for pid in found if pid)


@asynchronous
async def test_a_template_that_does_not_end_is_ended() -> None:
    async with running(demo(LOOP_ON_REQUEST), seconds=SECONDS) as encoder:
        before = pids(encoder)
        with pytest.raises(BadRequest, match="messages: the chat template did not finish"):
            await encoder.encode(Chat([{"role": "user", "content": "loop"}]))
        assert await encoder.encode(HELLO)
        assert pids(encoder) != before
        assert not psutil.pid_exists(before[0] or 0)


@asynchronous
async def test_others_are_served_meanwhile() -> None:
    async with running(demo(LOOP_ON_REQUEST), workers=2) as encoder:
        loop = asyncio.create_task(encoder.encode(Chat([{"role": "user", "content": "loop"}])))
        for _ in range(5):
            assert await encoder.encode(HELLO)
        assert not loop.done()
        # The end of the context ends the process, although it is busy.
        loop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loop
    assert pids(encoder) == [None, None]


@asynchronous
async def test_a_request_that_is_cancelled_does_not_answer_the_next() -> None:
    async with running(demo(LOOP_ON_REQUEST)) as encoder:
        expected = await encoder.encode(HELLO)
        loop = asyncio.create_task(encoder.encode(Chat([{"role": "user", "content": "loop"}])))
        await asyncio.sleep(0)
        loop.cancel()
        assert await encoder.encode(HELLO) == expected


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
@asynchronous
async def test_a_process_that_dies_is_replaced(number: signal.Signals) -> None:
    async with running(demo()) as encoder:
        (pid,) = pids(encoder)
        assert pid
        os.kill(pid, number)
        # Whether its end is known before the next request is a race.
        with suppress(TokenizerError):
            await encoder.encode("the cat")
        assert await encoder.encode("the cat")
        assert pids(encoder) != [pid]


@asynchronous
async def test_a_stopped_process_is_replaced() -> None:
    async with running(demo(), seconds=SECONDS) as encoder:
        (pid,) = pids(encoder)
        assert pid
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(BadRequest, match="did not finish"):
            await encoder.encode("the cat")
        assert await encoder.encode("the cat")
        os.kill(pids(encoder)[0] or 0, signal.SIGSTOP)
    assert not psutil.pid_exists(pid)


@asynchronous
async def test_a_template_that_takes_all_memory() -> None:
    template = "{% if messages[-1].content == 'more' %}{{ 'a' * 3000000000 }}{% endif %}fine"
    async with running(demo(template)) as encoder:
        with pytest.raises(BadRequest, match="the chat template fails on them: MemoryError"):
            await encoder.encode(Chat([{"role": "user", "content": "more"}]))
        assert await encoder.encode(HELLO)


@asynchronous
async def test_a_tokenizer_that_panics() -> None:
    async with running(panicking()) as encoder:
        before = pids(encoder)
        with pytest.raises(TokenizerError, match="the tokenizer has failed: PanicException"):
            await encoder.encode("a" * 28 + "c")
        assert await encoder.encode("a") == [0]
        assert pids(encoder) == before


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (LOOP, "does not work: messages: the chat template did not finish within 0.5 s"),
        ("{{ 1 + messages }}", "does not work: TypeError"),
        ("{% for %}", "does not work: TemplateSyntaxError"),
        ("", "has no chat template"),
        ({"tool_use": ""}, "has no chat template"),
    ],
)
@asynchronous
async def test_a_broken_template_is_found_at_the_start(
    template: Any, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(demo(template), seconds=SECONDS) as encoder:
        assert ("chat template default" in caplog.text) == ("work" in problem)
        for _ in range(2):
            with pytest.raises(BadRequest, match=problem) as caught:
                await encoder.encode(HELLO)
            assert caught.value.param == "messages"
        assert await encoder.encode("hello")


@asynchronous
async def test_all_templates_are_tried(caplog: pytest.LogCaptureFixture) -> None:
    """A template that refuses a system message gets a user's; one that fails on it serves other chats."""
    broken = "{% if messages[0].role == 'system' %}{{ 1 + messages }}{% endif %}fine"
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}fine"
    async with running(demo({"default": broken, "tool_use": "{{ x.y.z }}", "rag": refusing})) as encoder:
        assert await encoder.encode(HELLO)
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message.partition(": ")[0] for message in messages] == [
        "the chat template default does not work for a system message",
        "the chat template tool_use does not work for a message",
    ]


@asynchronous
async def test_a_tokenizer_that_the_process_cannot_load(monkeypatch: pytest.MonkeyPatch) -> None:
    good = PromptEncoder._setup
    monkeypatch.setattr(PromptEncoder, "_setup", lambda self: replace(good(self), tokenizer="{"))
    with pytest.raises(
        PartitionError, match="the process for the model's tokenizer does not start: exit code 1"
    ):
        async with running(demo()):
            raise AssertionError


def test_the_processes_end_with_the_control_plane() -> None:
    command = [sys.executable, "-c", ORPHANED, str(DEMO_MODEL)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.kill()
    assert psutil.wait_procs(workers, timeout=20)[1] == []

"""A server that is stopped finishes its running requests, and refuses new ones."""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
from yarl import URL

from tests.support.api.api_server import ASK, COMPLETION, ApiClient, eventually, read_events, serving
from tests.support.command_line import WAIT_SECONDS, RunningCommand, running_command

pytestmark = pytest.mark.slow

MESSAGES: Any = [{"role": "user", "content": "who sat?"}]


@contextmanager
def system(partition: Path, folder: Path, *settings: str) -> Iterator[tuple[RunningCommand, ApiClient]]:
    """Run `faasmoe up` as a process, and check that no process is left when it ends."""
    (folder / "config.yml").write_text("\n".join(("threads: 1", "kv_cache_mb: 8", *settings)))
    options = ("--port", 0, "--gateway-port", 0, "--database", folder / "faasmoe.db")
    command = ("up", partition, *options, "--config", folder / "config.yml")
    with running_command(*command, temporary=folder) as running:
        url = URL(running.wait_for(r"serving on (\S+);"))
        processes = [running.process.pid, *children(running)]
        yield running, ApiClient(url)
        assert running.process.wait(WAIT_SECONDS) == 0
        assert not any(map(psutil.pid_exists, processes))


def children(running: RunningCommand) -> list[int]:
    return [child.pid for child in psutil.Process(running.process.pid).children(recursive=True)]


def long_stream(api: ApiClient, max_tokens: int, **fields: Any) -> HTTPConnection:
    body = {**ASK, "max_tokens": max_tokens, "ignore_eos": True, "stream": True, **fields}
    return api.send("POST", COMPLETION, body)


def events(connection: HTTPConnection) -> list[Any]:
    """All events of a stream, which must end with [DONE]."""
    return read_events(connection.getresponse().read())


def test_running_requests_are_finished(chat_partition: Path, tmp_path: Path) -> None:
    with system(chat_partition, tmp_path) as (running, api), ExitStack() as stack:
        alone = api.post(COMPLETION, **ASK | {"max_tokens": 300, "ignore_eos": True})
        streams = [stack.enter_context(closing(long_stream(api, 300))) for _ in range(3)]
        body = {**ASK, "max_tokens": 300, "ignore_eos": True}
        waiting = stack.enter_context(closing(api.send("POST", COMPLETION, body)))
        # This idle connection stays open, and must not delay the end.
        stack.enter_context(closing(api.send("GET", "/health"))).getresponse().read()
        eventually(lambda: api.engine()["running"], 4)
        running.process.send_signal(signal.SIGTERM)
        eventually(lambda: api.answer("GET", "/ready").status, 503)
        for path, new in ((COMPLETION, ASK), ("/v1/chat/completions", {"messages": MESSAGES})):
            for stream in (False, True):
                refused = api.answer("POST", path, {**new, "stream": stream})
                assert refused.status == 503
                assert (refused.error["type"], refused.error["code"]) == ("server_error", "shutting_down")
                assert refused.headers["Retry-After"] == "1"
        assert api.answer("GET", "/ready").error["code"] == "shutting_down"
        assert api.answer("GET", "/health").status == 200
        assert api.engine()["running"] == 4
        for connection in streams:
            received = events(connection)
            text = "".join(event["choices"][0]["text"] for event in received)
            assert text == alone["choices"][0]["text"]
            assert received[-1]["choices"][0]["finish_reason"] == "length"
        answer = waiting.getresponse()
        assert (answer.status, json.load(answer)["choices"]) == (200, alone["choices"])


def test_a_second_signal_ends_requests_at_once(chat_partition: Path, tmp_path: Path) -> None:
    with system(chat_partition, tmp_path) as (running, api), ExitStack() as stack:
        connection = stack.enter_context(closing(long_stream(api, 3500)))
        chat = {"messages": MESSAGES, "max_tokens": 3500, "ignore_eos": True, "stream": True}
        chatting = stack.enter_context(closing(api.send("POST", "/v1/chat/completions", chat)))
        waiting = stack.enter_context(
            closing(api.send("POST", COMPLETION, {**ASK, "max_tokens": 3500, "ignore_eos": True}))
        )
        eventually(lambda: api.engine()["running"], 3)
        eventually(lambda: api.invocations() > 60, True)
        running.process.send_signal(signal.SIGTERM)
        eventually(lambda: api.answer("GET", "/ready").status, 503)
        running.process.send_signal(signal.SIGINT)
        for stream in (connection, chatting):
            *received, last = events(stream)
            assert received
            assert all(event["choices"] for event in received)
            assert len(received) < 3500
            assert (last["error"]["type"], last["error"]["code"]) == ("server_error", "shutting_down")
        answer = waiting.getresponse()
        assert (answer.status, json.load(answer)["error"]["code"]) == (503, "shutting_down")


def test_requests_are_ended_after_drain_seconds(chat_partition: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        with serving(chat_partition, tmp_path / "faasmoe.db", open=True, drain_seconds=0.3) as api:
            connection = stack.enter_context(closing(long_stream(api, 3500)))
            eventually(lambda: api.invocations() > 30, True)
        *received, last = events(connection)
    assert received
    assert last["error"]["code"] == "shutting_down"

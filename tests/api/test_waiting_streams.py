"""A stream that waits for a token sends heartbeats, so that no proxy or client closes it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from control_plane.api import sending
from control_plane.app import control_plane
from control_plane.config import ServeConfig
from control_plane.faas.call import InvocationPolicy
from control_plane.faas.gateway_access import GatewayAccess
from tests.support.api.api_server import (
    ASK,
    COMPLETION,
    HEARTBEAT,
    IDLE,
    ApiClient,
    closed_port,
    eventually,
    holding,
    in_thread,
    openai_client,
    read_events,
    serving,
)
from tests.support.models.tiny_chat_model import NAME

pytestmark = pytest.mark.slow

UNPATCHED_SECONDS = sending.HEARTBEAT_SECONDS
STREAM: Any = {**ASK, "stream": True}


@pytest.fixture(scope="module")
def narrow(chat_partition: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiClient]:
    """A server that runs one sequence at a time, with heartbeats in quick succession."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sending, "HEARTBEAT_SECONDS", 0.05)
        database = tmp_path_factory.mktemp("database") / "faasmoe.db"
        with serving(chat_partition, database, open=True, max_sequences=1) as client:
            yield client


def heartbeats(answer: HTTPResponse, number: int) -> None:
    """Read this number of heartbeats, and nothing else."""
    for _ in range(number):
        assert answer.read(len(HEARTBEAT)) == HEARTBEAT


def test_a_stream_that_waits_in_the_queue(narrow: ApiClient) -> None:
    alone = narrow.post(COMPLETION, **ASK)["choices"][0]["text"]
    with ExitStack() as busy:
        busy.enter_context(holding(narrow))
        with (
            closing(narrow.send("POST", COMPLETION, STREAM)) as connection,
            connection.getresponse() as answer,
        ):
            assert answer.status == 200
            assert answer.headers["X-Accel-Buffering"] == "no"
            assert answer.headers["Cache-Control"] == "no-cache"
            heartbeats(answer, 5)
            assert narrow.engine()["waiting"] == 1
            busy.close()
            assert "".join(event["choices"][0]["text"] for event in read_events(answer.read())) == alone


def test_an_error_after_a_heartbeat_is_an_event(
    chat_partition: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier error has its own status: see tests/api/test_errors.py."""
    monkeypatch.setattr(sending, "HEARTBEAT_SECONDS", 0.05)
    settings: Any = {"open": True, "invocation_deadline": 1.0, "kv_cache_mb": 1, "threads": 1}
    config = ServeConfig(port=0, database=str(tmp_path / "db"), **settings)
    with closed_port() as port:
        gateway = GatewayAccess(URL.build(scheme="http", host="127.0.0.1", port=port))
        with in_thread(control_plane(chat_partition, config, [gateway])) as url:
            api = ApiClient(url)
            with closing(api.send("POST", COMPLETION, STREAM)) as connection:
                answer = connection.getresponse()
                assert answer.status == 200
                heartbeats(answer, 1)
                (event,) = read_events(answer.read())
            assert event["error"]["code"] == "function_unavailable"
            failures = {
                dict(labels)["status"]: count
                for (name, labels), count in api.metrics().items()
                if name == "faasmoe:request_failure_total"
            }
            assert failures == {"503": 1}


def test_a_stream_that_does_not_wait_has_no_heartbeat(
    api: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "HEARTBEAT_SECONDS", 60.0)
    with closing(api.send("POST", COMPLETION, STREAM)) as connection:
        assert HEARTBEAT not in connection.getresponse().read()


def test_when_a_stream_says_that_it_waits() -> None:
    """Heartbeats begin before proxies give up, and after the error of a function known to be broken."""
    assert InvocationPolicy().broken_deadline + 1 < UNPATCHED_SECONDS < 9


def test_errors_that_come_at_once_have_their_own_status(narrow: ApiClient) -> None:
    for wrong, status in (
        ({"temperature": -1}, 400),
        ({"max_tokens": 0}, 400),
        ({"model": "gpt-4"}, 404),
    ):
        assert narrow.answer("POST", COMPLETION, {**STREAM, **wrong}).status == status


def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind(narrow: ApiClient) -> None:
    with holding(narrow), closing(narrow.send("POST", COMPLETION, STREAM)) as connection:
        answer = connection.getresponse()
        heartbeats(answer, 2)
        assert narrow.engine()["waiting"] == 1
        answer.close()
        connection.close()
        eventually(lambda: narrow.engine()["waiting"], 0)
        assert narrow.engine()["running"] == 1
    eventually(narrow.engine, IDLE)


def test_the_official_client_skips_heartbeats(narrow: ApiClient) -> None:
    asked: Any = {"model": NAME, "prompt": "the cat", "max_tokens": 4, "temperature": 0}
    with openai_client(narrow, "any") as client, ExitStack() as busy, ThreadPoolExecutor(1) as thread:
        alone = client.completions.create(**asked).choices[0].text
        busy.enter_context(holding(narrow))
        stream = client.completions.create(**asked, stream=True)  # It returns with the first heartbeat.
        text = thread.submit(lambda: "".join(chunk.choices[0].text for chunk in stream))
        assert narrow.engine()["waiting"] == 1
        busy.close()
        assert text.result() == alone

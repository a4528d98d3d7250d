"""Usage that is booked to tenants, also after a disconnect and after the server is killed."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from tests.support.api.api_server import (
    ASK,
    ASK_TOKENS,
    COMPLETION,
    IDLE,
    ApiClient,
    add_tenant,
    completion,
    eventually,
    usage_of,
)
from tests.support.command_line import running_command
from tests.support.models.chat_fixtures import NewTenant

pytestmark = pytest.mark.slow


def test_usage_of_answers_is_booked(server: ApiClient, new_tenant: NewTenant, database: Path) -> None:
    names = [f"booked-{number}" for number in range(3)]
    clients = [new_tenant(name) for name in names]
    eventually(server.engine, IDLE)
    before = server.invocations()

    def ask(number: int) -> Any:
        fields = {"max_tokens": 5 + number, "n": 2, "prompt": ["the cat", f"the {number}"]}
        return completion(clients[number % 3], **fields).json["usage"]

    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(ask, range(12)))
    calls = 0.0
    for number, name in enumerate(names):
        mine = answers[number::3]
        booked = usage_of(database, name)
        assert booked.requests == len(mine)
        assert booked.prompt_tokens == sum(usage["prompt_tokens"] for usage in mine)
        assert booked.generated_tokens == sum(usage["completion_tokens"] for usage in mine)
        experts = [usage["experts"] for usage in mine]
        assert booked.expert_invocations == pytest.approx(sum(e["invocations"] for e in experts), abs=0.01)
        assert booked.expert_seconds == pytest.approx(sum(e["seconds"] for e in experts), abs=1e-4)
        calls += booked.expert_invocations
    # The bookings of all tenants add up to the calls that the functions received.
    assert calls == pytest.approx(server.invocations() - before, abs=0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_usage_of_cancelled_requests_is_booked(
    server: ApiClient, new_tenant: NewTenant, database: Path, stream: bool
) -> None:
    name = f"quitter-{stream}"
    api = new_tenant(name)
    body = {**ASK, "max_tokens": 3000, "ignore_eos": True, "stream": stream}
    connection = api.send("POST", COMPLETION, body)
    eventually(lambda: server.engine()["running"], 1)
    calls = server.invocations()
    eventually(lambda: server.invocations() > calls + 30, True)
    connection.close()
    eventually(lambda: usage_of(database, name).requests, 1)
    booked = usage_of(database, name)
    assert booked.prompt_tokens == 2
    assert 1 <= booked.generated_tokens < 3000
    assert booked.expert_invocations > 0


def test_other_processes_and_the_server_read_the_same_usage(new_tenant: NewTenant, database: Path) -> None:
    """The command line opens and closes the database while the server uses it."""
    api = new_tenant("seen")
    for requests in (1, 2, 3):
        assert completion(api).status == 200
        booked = json.loads(output("usage", "--tenant", "seen", "--json", "--database", database))
        assert booked[0]["requests"] == requests
    output("tenants", "remove", "seen", "--database", database)
    assert completion(api).status == 401


def output(*arguments: object) -> str:
    """The standard output of a `faasmoe` process."""
    command = [sys.executable, "-m", "control_plane", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout


def test_usage_after_the_server_is_killed_under_load(chat_partition: Path, tmp_path: Path) -> None:
    """Every answered request is booked, and of the others at most those that were running."""
    database = tmp_path / "faasmoe.db"
    keys = {name: add_tenant(database, name) for name in ("one", "two", "three")}
    options = ("--port", 0, "--database", database, "--log-level", "warning")
    answered: list[str] = []

    def ask_until_it_dies(api: ApiClient, name: str) -> None:
        try:
            while True:
                answer = completion(api)
                assert (answer.status, answer.json["usage"]["total_tokens"]) == (200, ASK_TOKENS)
                answered.append(name)
        except (OSError, HTTPException):
            """The server has been killed."""

    with running_command("gateway", chat_partition, "--port", 0, temporary=tmp_path) as gateway:
        command = ("serve", chat_partition, "--gateway", gateway.wait_for(r"gateway on (\S+);"), *options)
        with running_command("deploy", *command[1:4], temporary=tmp_path) as deploy:
            assert deploy.process.wait(60) == 0
        with running_command(*command, temporary=tmp_path) as server:
            url = URL(server.wait_for(r"serving on (\S+);"))
            with ThreadPoolExecutor(6) as threads:
                asking = [
                    threads.submit(ask_until_it_dies, ApiClient(url, key), name)
                    for name, key in [*keys.items()] * 2
                ]
                eventually(lambda: len(answered) >= 60, True)
                assert server.end(signal.SIGKILL) == -signal.SIGKILL
            for each in asking:
                each.result()
        with running_command(*command, temporary=tmp_path) as server:
            url = URL(server.wait_for(r"serving on (\S+);"))
            for name, key in keys.items():
                # Two clients sent requests of each tenant.
                before = usage_of(database, name)
                assert 0 < answered.count(name) <= before.requests <= answered.count(name) + 2
                assert before.prompt_tokens + before.generated_tokens == before.requests * ASK_TOKENS
                assert completion(ApiClient(url, key)).status == 200
                assert usage_of(database, name).requests == before.requests + 1

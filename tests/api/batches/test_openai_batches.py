"""Files and batches, through OpenAI's own client, and across a kill of the server."""

import json
import signal
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from yarl import URL

from control_plane.api.batches.records import OPEN
from control_plane.api.batches.runner import CONCURRENT_LINES
from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.tenants import Limits
from tests.support.api_server import (
    ASK_TOKENS,
    TIMEOUT_SECONDS,
    ApiClient,
    add_tenant,
    completion,
    eventually,
    holding,
    openai_client,
    serving,
    usage_of,
)
from tests.support.chat_fixtures import NewTenant
from tests.support.command_line import running_command
from tests.support.tiny_chat_model import NAME

pytestmark = pytest.mark.slow

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT: dict[str, Any] = {"model": NAME, "prompt": "the cat", "max_tokens": 4, "temperature": 0}
MESSAGES = [{"role": "user", "content": "hello"}]


def line(custom_id: str, url: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {**PROMPT, **body}}


def upload(client: openai.OpenAI, lines: list[Any]) -> openai.types.FileObject:
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    return client.files.create(file=("night.jsonl", text.encode()), purpose="batch")


def begin(client: openai.OpenAI, lines: list[Any], endpoint: Any = COMPLETIONS) -> openai.types.Batch:
    return client.batches.create(
        input_file_id=upload(client, lines).id, endpoint=endpoint, completion_window="24h"
    )


def ended(client: openai.OpenAI, batch: openai.types.Batch) -> openai.types.Batch:
    """The batch at its end. Asks seldom: the server has little time for batches while it is asked."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while (found := client.batches.retrieve(batch.id)).status in OPEN:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def answers(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    """The lines of a file by their custom_id, each of which is there once."""
    if file_id is None:
        return {}
    found = [json.loads(text) for text in client.files.content(file_id).text.splitlines()]
    by_id = {each["custom_id"]: each for each in found}
    assert len(by_id) == len(found)
    return by_id


@contextmanager
def client_of(api: ApiClient) -> Iterator[openai.OpenAI]:
    assert api.key
    with openai_client(api, api.key) as client:
        yield client


def test_a_batch_has_the_answers_of_single_requests(new_tenant: NewTenant, database: Path) -> None:
    api = new_tenant("night")
    with client_of(api) as client:
        lines = [
            line("plain"),
            line("two", n=2, seed=7, temperature=1),
            line("wrong", temperature=9),
            line("other model", model="gpt-4"),
            line("streams", stream=True),
        ]
        file = upload(client, lines)
        assert (file.purpose, file.filename, file.status) == ("batch", "night.jsonl", "processed")
        assert client.files.retrieve(file.id) == file
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/completions",
            completion_window="24h",
            metadata={"job": "nightly"},
        )
        assert (batch.object, batch.metadata, batch.endpoint) == ("batch", {"job": "nightly"}, COMPLETIONS)
        batch = ended(client, batch)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": 5, "completed": 2, "failed": 3}
        assert batch.completed_at
        good, bad = answers(client, batch.output_file_id), answers(client, batch.error_file_id)
        assert (set(good), set(bad)) == ({"plain", "two"}, {"wrong", "other model", "streams"})
        for custom_id, body in (("plain", {}), ("two", {"n": 2, "seed": 7, "temperature": 1})):
            response = good[custom_id]["response"]
            assert (response["status_code"], good[custom_id]["error"]) == (200, None)
            single = client.completions.create(**{**PROMPT, **body})
            choices = openai.types.Completion.model_validate(response["body"]).choices
            assert choices == single.choices
        statuses = {custom_id: each["response"]["status_code"] for custom_id, each in bad.items()}
        assert statuses == {"wrong": 400, "other model": 404, "streams": 400}
        assert bad["wrong"]["response"]["body"]["error"]["param"] == "temperature"
        assert [each.id for each in client.batches.list()] == [batch.id]
        assert {each.id for each in client.files.list(purpose="batch_output")} == {
            batch.output_file_id,
            batch.error_file_id,
        }
        # 3 answers of 4 tokens to 2 prompts of 2, as a batch and alone.
        assert usage_of(database, "night").generated_tokens == 2 * 12


def test_a_batch_of_chats(new_tenant: NewTenant) -> None:
    with client_of(new_tenant("chatty")) as client:
        body = {"model": NAME, "messages": MESSAGES, "max_tokens": 5, "temperature": 0}
        chats = [{"custom_id": f"c{n}", "method": "POST", "url": CHAT, "body": body} for n in range(20)]
        batch = ended(client, begin(client, chats, CHAT))
        found = answers(client, batch.output_file_id)
        assert set(found) == {f"c{n}" for n in range(20)}
        single = client.chat.completions.create(**body)  # type: ignore[call-overload]
        texts = {each["response"]["body"]["choices"][0]["message"]["content"] for each in found.values()}
        assert texts == {single.choices[0].message.content}


@pytest.mark.parametrize(
    ("lines", "where", "words"),
    [
        (["not json"], 1, "JSON"),
        ([line("a"), line("a")], 2, "another line"),
        ([line("a"), line("b", url=CHAT)], 2, "endpoint"),
        ([{**line("a"), "method": "GET"}], 1, "method"),
        ([line("a"), [1]], 2, "object"),
        (["  "], None, "no requests"),
    ],
)
def test_an_input_file_with_a_fault(new_tenant: NewTenant, lines: list[Any], where: Any, words: str) -> None:
    with client_of(new_tenant(f"faulty-{abs(hash(words))}")) as client:
        batch = ended(client, begin(client, lines))
        assert batch.status == "failed"
        assert batch.errors
        assert batch.errors.data
        assert batch.errors.data[0].line == where
        assert words in str(batch.errors.data[0].message)
        assert batch.output_file_id is None


def test_nobody_sees_what_is_another_s(new_tenant: NewTenant, database: Path) -> None:
    with client_of(new_tenant("owner")) as owner, client_of(new_tenant("nosy")) as nosy:
        batch = ended(owner, begin(owner, [line("a")]))
        assert batch.output_file_id
        assert not nosy.files.list().data
        assert not nosy.batches.list().data
        for call in (
            lambda: nosy.files.retrieve(batch.input_file_id),
            lambda: nosy.files.content(str(batch.output_file_id)),
            lambda: nosy.files.delete(batch.input_file_id),
            lambda: nosy.batches.retrieve(batch.id),
            lambda: nosy.batches.cancel(batch.id),
            lambda: nosy.batches.create(
                input_file_id=batch.input_file_id, endpoint="/v1/completions", completion_window="24h"
            ),
            lambda: nosy.files.retrieve("file-..%2f..%2ffaasmoe.db"),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
        # Nor does a later tenant of the same name.
        time.sleep(1.1 - time.time() % 1)
        with TenantStore.open(database) as store:
            store.remove("owner")
            key = store.add("owner", Limits(), operator=False)
        with openai_client(new_tenant("any"), key) as later:
            assert not later.files.list().data
    folder = database.with_name(f"{database.name}.batches")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())} == {0o700}


def test_files_are_deleted(new_tenant: NewTenant) -> None:
    with client_of(new_tenant("tidy")) as client:
        file = upload(client, [line("a")])
        assert client.files.content(file.id).text == json.dumps(line("a"))
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.content(file.id)
        with pytest.raises(openai.BadRequestError, match="purpose"):
            client.files.create(file=b"{}", purpose="assistants")
        with pytest.raises(openai.BadRequestError, match="endpoint"):
            begin(client, [line("a")], "/v1/embeddings")
        assert not client.files.list(purpose="assistants").data


def test_a_batch_waits_while_others_are_served_and_can_be_cancelled(
    new_tenant: NewTenant, server: ApiClient, database: Path
) -> None:
    watcher = server.with_key(add_tenant(database, "batch-watcher", operator=True))
    with client_of(new_tenant("patient")) as client:
        with holding(new_tenant("busy")):
            long = [line(str(n), max_tokens=400, ignore_eos=True) for n in range(29)]
            batch = begin(client, [line("short"), *long])
            eventually(lambda: client.batches.retrieve(batch.id).status, "in_progress")
            # Somebody is served, so nothing of it is in the engine, whatever else comes and goes.
            for _ in range(5):
                assert completion(new_tenant(f"guest-{time.monotonic_ns()}")).status == 200
            assert watcher.status()["engine"]["running"] + watcher.status()["engine"]["waiting"] <= 1
            assert usage_of(database, "patient").requests == 0
            with pytest.raises(openai.BadRequestError, match="has not ended"):
                client.files.delete(batch.input_file_id)

        def completed() -> int:
            counts = client.batches.retrieve(batch.id).request_counts
            return counts.completed if counts else 0

        eventually(lambda: completed() >= 1, True)
        client.batches.cancel(batch.id)
        batch = ended(client, batch)
        assert batch.status == "cancelled"
        assert batch.request_counts
        assert batch.request_counts.completed < 30
        assert len(answers(client, batch.output_file_id)) == batch.request_counts.completed
        assert client.batches.cancel(batch.id).status == "cancelled"


@pytest.mark.parametrize(
    ("limits", "number"),
    # 40 requests of 6 tokens empty the bucket, which refills 4 tokens a second.
    [({"tpm": 40 * ASK_TOKENS}, 42), ({"max_concurrency": 1}, 3)],
)
def test_a_batch_waits_for_its_tenant_s_limits(
    new_tenant: NewTenant, limits: dict[str, int], number: int
) -> None:
    with client_of(new_tenant(f"limited-{number}", **limits)) as client:
        batch = ended(client, begin(client, [line(str(n)) for n in range(number)]))
        assert batch.request_counts
        assert batch.request_counts.to_dict() == {"total": number, "completed": number, "failed": 0}


def test_without_room_uploads_are_refused_and_batches_fail_clearly(
    chat_partition: Path, tmp_path: Path
) -> None:
    database = tmp_path / "faasmoe.db"
    key = add_tenant(database, "acme")
    with (
        serving(chat_partition, database, batch_storage=6000) as server,
        openai_client(server, key) as client,
    ):
        with pytest.raises(openai.InternalServerError) as full:
            upload(client, [line("a", prompt="x" * 4000)])
        assert (full.value.status_code, full.value.code) == (507, "storage_full")
        assert not client.files.list().data
        batch = ended(client, begin(client, [line(str(n)) for n in range(15)]))
        assert (batch.status, batch.errors and batch.errors.data and batch.errors.data[0].code) == (
            "failed",
            "storage_full",
        )
        assert answers(client, batch.output_file_id)
        for file in client.files.list():
            client.files.delete(file.id)
        assert ended(client, begin(client, [line("a")])).status == "completed"
    with (
        serving(chat_partition, database, batch_storage=0) as server,
        openai_client(server, key) as client,
        pytest.raises(openai.NotFoundError),
    ):
        client.files.list()


def test_what_is_not_done_within_the_window_expires(chat_partition: Path, tmp_path: Path) -> None:
    database = tmp_path / "faasmoe.db"
    key = add_tenant(database, "acme", rpm=1)
    with serving(chat_partition, database) as server, openai_client(server, key) as client:
        batch = begin(client, [line(str(n)) for n in range(3)])
        while (counts := client.batches.retrieve(batch.id).request_counts) is None or not counts.completed:
            time.sleep(0.05)
    (state,) = database.with_name(f"{database.name}.batches").glob("acme/batch-*.json")
    record = json.loads(state.read_text())
    state.write_text(json.dumps({**record, "expires": record["created"]}))
    with serving(chat_partition, database) as server, openai_client(server, key) as client:
        batch = ended(client, batch)
        assert (batch.status, bool(batch.expired_at)) == ("expired", True)
        assert len(answers(client, batch.output_file_id)) == 1


def test_a_batch_goes_on_after_a_kill(chat_partition: Path, tmp_path: Path) -> None:
    """Every line has exactly one answer, the one that a single request gets."""
    database = tmp_path / "faasmoe.db"
    key = add_tenant(database, "acme")
    command = ("up", chat_partition, "--port", 0, "--database", database, "--keys-only")
    total = 30
    with running_command(*command, temporary=tmp_path) as server:
        api = ApiClient(URL(server.wait_for(r"serving on (\S+);")), key)
        with client_of(api) as client:
            batch = begin(
                client, [line(str(n), max_tokens=40, seed=n, ignore_eos=True) for n in range(total)]
            )

            def completed() -> int:
                counts = client.batches.retrieve(batch.id).request_counts
                return counts.completed if counts else 0

            eventually(lambda: completed() >= 5, True)
            before = completed()
            assert server.end(signal.SIGKILL) == -signal.SIGKILL
    assert before < total
    (partial,) = database.with_name(f"{database.name}.batches").glob("acme/*.partial")
    with partial.open("ab") as file:
        file.write(b'{"id": "half a li')
    with running_command(*command, temporary=tmp_path) as server:
        api = ApiClient(URL(server.wait_for(r"serving on (\S+);")), key)
        with client_of(api) as client:
            found = ended(client, batch)
            assert found.status == "completed"
            assert found.request_counts
            assert found.request_counts.to_dict() == {"total": total, "completed": total, "failed": 0}
            good = answers(client, found.output_file_id)
            assert set(good) == {str(n) for n in range(total)}
            for n in (0, total - 1):
                body = {**PROMPT, "max_tokens": 40, "seed": n, "extra_body": {"ignore_eos": True}}
                single = client.completions.create(**body)
                assert good[str(n)]["response"]["body"]["choices"][0]["text"] == single.choices[0].text
    # Lines that were written are not done again. Those in the engine then may be booked already.
    assert usage_of(database, "acme").requests <= total + CONCURRENT_LINES


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--x\r\n",
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{}',
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"b" * 2000 + b"\r\n--x--\r\n",
        b"--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y--\r\n--x--\r\n",
        b"--x\r\n" * 1000,
        b"\xff" * 5000,
    ],
)
def test_malformed_uploads(new_tenant: NewTenant, body: bytes) -> None:
    api = new_tenant(f"malformed-{zlib.crc32(body)}")
    answer = api.answer("POST", "/v1/files", body, **{"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status == 400, answer.body
    assert answer.error["type"] == "invalid_request_error"
    assert api.ask("GET", "/v1/files")[1]["data"] == []

"""Files, through OpenAI's own client: who sees them, how they end, and which are refused."""

import json
import stat
import time
import zlib
from pathlib import Path

import openai
import pytest

from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.tenants import Limits
from tests.support.api.api_server import add_tenant, openai_client, serving
from tests.support.api.batches import answers, begin, client_of, ended, line, upload
from tests.support.models.chat_fixtures import NewTenant

pytestmark = pytest.mark.slow


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

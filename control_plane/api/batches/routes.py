"""The routes of files and batches, as in OpenAI's API (https://platform.openai.com/docs/api-reference/batch)."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from control_plane.api.authentication import Authentication
from control_plane.api.batches.records import BatchRecord, FileRecord
from control_plane.api.batches.runner import BatchRunner
from control_plane.api.batches.shelf import Shelf
from control_plane.api.batches.wire import read_batch
from control_plane.api.bodies.reading import decode_json
from control_plane.api.middleware import TENANT
from control_plane.api.sending import send_part
from control_plane.errors import BadRequest
from control_plane.tenancy.tenants import Tenant

CHUNK_BYTES = 256 << 10
CHUNK_SECONDS = 30.0
"""The longest that a client may take for the next chunk of an upload."""
MAX_PARTS = 16
MAX_FIELD_BYTES = 1024
MAX_FILENAME = 255
MAX_PAGE = 10_000


@dataclass(frozen=True)
class BatchRoutes:
    """The handlers of the routes."""

    authentication: Authentication
    shelf: Shelf
    runner: BatchRunner
    model: str

    def routes(self) -> list[web.RouteDef]:
        """All routes."""
        return [
            web.post("/v1/files", self.upload),
            web.get("/v1/files", self.list_files),
            web.get("/v1/files/{file}", self.show_file),
            web.get("/v1/files/{file}/content", self.send_content),
            web.delete("/v1/files/{file}", self.delete_file),
            web.post("/v1/batches", self.create),
            web.get("/v1/batches", self.list_batches),
            web.get("/v1/batches/{batch}", self.show_batch),
            web.post("/v1/batches/{batch}/cancel", self.cancel),
        ]

    async def upload(self, request: web.Request) -> web.Response:
        """POST /v1/files: keep a file."""
        tenant = await self._tenant(request)
        if request.content_type != "multipart/form-data":
            raise web.HTTPUnsupportedMediaType(reason="the Content-Type must be multipart/form-data")
        return web.json_response((await self._read_upload(request, tenant)).body())

    async def _read_upload(self, request: web.Request, tenant: Tenant) -> FileRecord:
        """Keep the file of a form. Its purpose may come before or after it. Raises `BadRequest`."""
        async with _reading():
            reader = await request.multipart()
        purpose: str | None = None
        file: FileRecord | None = None
        try:
            async for part in _parts(reader):
                if part.name == "file" and not file:
                    name = (part.filename or "file")[:MAX_FILENAME].encode(errors="replace").decode()
                    file = await self.shelf.upload(tenant, name, _chunks(part))
                elif part.name == "purpose":
                    purpose = await _field(part)
                else:
                    await _field(part)
            if file is None:
                raise BadRequest("file: is missing", "file")
            if purpose != "batch":
                raise BadRequest("purpose: must be batch", "purpose")
        except BaseException:
            if file:
                await self.shelf.delete(tenant, file.id)
            raise
        return file

    async def list_files(self, request: web.Request) -> web.Response:
        """GET /v1/files: list the tenant's files."""
        tenant = await self._tenant(request)
        purpose = request.query.get("purpose")
        files = [file for file in self.shelf.files(tenant) if purpose in (None, file.purpose)]
        if request.query.get("order") == "asc":
            files.reverse()
        page, more = _page(request, files, MAX_PAGE)
        return web.json_response(_list([file.body() for file in page], more))

    async def show_file(self, request: web.Request) -> web.Response:
        """GET /v1/files/{file}: describe a file."""
        return web.json_response((await self._file(request)).body())

    async def send_content(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/files/{file}/content: send a file."""
        file = await self._file(request)
        response = web.StreamResponse(headers={"Content-Type": "application/jsonl"})
        response.content_length = file.nbytes
        with self.shelf.storage.content(file.tenant, file.id).open("rb") as content:
            while chunk := await asyncio.to_thread(content.read, CHUNK_BYTES):
                await send_part(request, response, chunk)
        return response

    async def delete_file(self, request: web.Request) -> web.Response:
        """DELETE /v1/files/{file}."""
        tenant = await self._tenant(request)
        await self.shelf.delete(tenant, request.match_info["file"])
        return web.json_response({"id": request.match_info["file"], "object": "file", "deleted": True})

    async def create(self, request: web.Request) -> web.Response:
        """POST /v1/batches: begin a batch."""
        tenant = await self._tenant(request)
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(reason="the Content-Type must be application/json")
        async with _reading():
            body = await request.read()
        asked = read_batch(decode_json(body), self.runner.endpoints)
        batch = await self.shelf.add(tenant, asked.endpoint, asked.input_file_id, asked.metadata)
        self.runner.start(batch)
        return self._batch_response(batch)

    async def list_batches(self, request: web.Request) -> web.Response:
        """GET /v1/batches: list the tenant's batches, the newest first."""
        page, more = _page(request, self.shelf.batches(await self._tenant(request)), 20)
        return web.json_response(_list([batch.body(self.model) for batch in page], more))

    async def show_batch(self, request: web.Request) -> web.Response:
        """GET /v1/batches/{batch}: describe a batch."""
        return self._batch_response(await self._batch(request))

    async def cancel(self, request: web.Request) -> web.Response:
        """POST /v1/batches/{batch}/cancel: end a batch."""
        batch = await self._batch(request)
        await self.runner.cancel(batch)
        return self._batch_response(batch)

    def _batch_response(self, batch: BatchRecord) -> web.Response:
        return web.json_response(batch.body(self.model))

    async def _tenant(self, request: web.Request) -> Tenant:
        await self.authentication.identify(request)
        if TENANT not in request:
            request[TENANT] = await self.authentication.named(None)
        tenant: Tenant = request[TENANT]
        return tenant

    async def _file(self, request: web.Request) -> FileRecord:
        return self.shelf.file(await self._tenant(request), request.match_info["file"])

    async def _batch(self, request: web.Request) -> BatchRecord:
        return self.shelf.batch(await self._tenant(request), request.match_info["batch"])


@asynccontextmanager
async def _reading() -> AsyncIterator[None]:
    """Bound the time to read from a client, and answer for what aiohttp raises at a malformed form."""
    try:
        async with asyncio.timeout(CHUNK_SECONDS):
            yield
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(reason="the body did not arrive in time") from error
    # aiohttp asserts that a form goes on until its last boundary.
    except (ValueError, AssertionError, HttpProcessingError) as error:
        raise BadRequest("the body is not multipart/form-data") from error


async def _parts(reader: MultipartReader) -> AsyncIterator[BodyPartReader]:
    """The parts of a form, a few at most."""
    for _ in range(MAX_PARTS):
        async with _reading():
            part = await reader.next()
        if part is None:
            return
        if not isinstance(part, BodyPartReader):
            raise BadRequest("a part of the form is a form itself")
        yield part
    raise BadRequest(f"the form has more than {MAX_PARTS} parts")


async def _chunks(part: BodyPartReader) -> AsyncIterator[bytes]:
    """The content of a part."""
    while True:
        async with _reading():
            chunk = await part.read_chunk(CHUNK_BYTES)
        if not chunk:
            return
        yield chunk


async def _field(part: BodyPartReader) -> str:
    """The value of a short field. Raises `BadRequest`."""
    value = bytearray()
    async for chunk in _chunks(part):
        value += chunk
        if len(value) > MAX_FIELD_BYTES:
            raise BadRequest(f"a field has more than {MAX_FIELD_BYTES} bytes")
    return value.decode(errors="replace")


def _page(request: web.Request, records: Sequence[Any], default: int) -> tuple[Sequence[Any], bool]:
    """The part of a list that a request asks for by `after` and `limit`, and whether there is more."""
    limit = request.query.get("limit", str(default))
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= MAX_PAGE:
        raise BadRequest(f"limit: must be a whole number from 1 to {MAX_PAGE}", "limit")
    after = request.query.get("after")
    start = next((number for number, record in enumerate(records, 1) if record.id == after), 0)
    if after and not start:
        raise BadRequest("after: there is nothing with this id", "after")
    end = start + int(limit)
    return records[start:end], len(records) > end


def _list(data: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
    return {"object": "list", "data": data, "has_more": more, **ends}

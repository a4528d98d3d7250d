"""Runs batches line by line in the background of the engine, while no client waits for an answer."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from control_plane.api.active_request import Caller, RequestTiming
from control_plane.api.batches.endpoints import Endpoint
from control_plane.api.batches.records import BatchRecord, LineError, Status
from control_plane.api.batches.shelf import Shelf, is_of
from control_plane.api.batches.wire import Line, check_lines, lines, read_line
from control_plane.api.drain import Drain
from control_plane.api.models import ServedModels
from control_plane.api.openai.errors import INTERNAL, KINDS, domain_error_body
from control_plane.api.service import CompletionService
from control_plane.api.text.answer_format import AnswerHead
from control_plane.errors import (
    BadRequest,
    FaaSMoEError,
    RetryLater,
    ShuttingDown,
    StorageFull,
    UnknownTenant,
)
from control_plane.tenancy.tenants import Tenant

CONCURRENT_LINES = 8
"""Most lines of all batches together that are in the engine."""
WAIT_SECONDS = 60.0
"""Longest pause before a line that has reached a limit of its tenant is tried again: limits may change."""
ATTEMPTS = 3
"""The most attempts at a line that fails because of an error of the server."""
SWEEP_SECONDS = 600.0

logger = logging.getLogger(__name__)


@dataclass
class BatchRunner:
    """Runs the open batches of a shelf, each in a task."""

    shelf: Shelf
    service: CompletionService
    drain: Drain
    tenant_of: Callable[[str], Awaitable[Tenant]]
    """Returns the current state of the tenant with this name. Raises `UnknownTenant`."""
    endpoints: Mapping[str, Endpoint]
    models: ServedModels
    fingerprint: str
    """The `system_fingerprint` of answers."""
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENT_LINES))
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while answers are written or published, so that none comes after its file is published."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run batches until the context ends. Lines that are not done then are done after the next start."""
        for batch in self.shelf.open_batches:
            self.start(batch)
        sweeper = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            tasks = [sweeper, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def start(self, batch: BatchRecord) -> None:
        """Run a batch."""
        task = asyncio.create_task(self._run(batch))
        self._tasks[batch.id] = task
        task.add_done_callback(lambda done: self._forget(batch, done))

    async def cancel(self, batch: BatchRecord) -> None:
        """End a batch: its answers so far become its files. Does nothing for one that has ended."""
        if batch.status not in ("validating", "in_progress"):
            return
        batch.enter("cancelling", self.shelf.now)
        await self.shelf.save(batch)
        if task := self._tasks.get(batch.id):
            task.cancel()
            await asyncio.wait([task])
        self.start(batch)

    def _forget(self, batch: BatchRecord, task: asyncio.Task[None]) -> None:
        if self._tasks.get(batch.id) is task:
            del self._tasks[batch.id]

    async def _run(self, batch: BatchRecord) -> None:
        try:
            await self._advance(batch)
        except Exception as raised:
            # The edge of the task: a fault in one batch must not leave it open for ever.
            error = raised.exceptions[0] if isinstance(raised, ExceptionGroup) else raised
            if isinstance(error, ShuttingDown):
                return  # The next start goes on with it.
            if isinstance(error, FaaSMoEError):
                batch.errors = [LineError(KINDS[type(error)].code or "failed", str(error))]
            else:
                logger.exception("a batch failed", extra={"tenant": batch.tenant})
                batch.errors = [LineError("server_error", INTERNAL.text)]
            await self._end(batch, "failed")

    async def _advance(self, batch: BatchRecord) -> None:
        """Run a batch from its present state to its end."""
        if batch.status == "validating" and not await self._validate(batch):
            return
        if batch.status == "in_progress":
            try:
                async with asyncio.timeout(max(0.0, batch.expires - self.shelf.now)):
                    await self._answer_all(batch)
            except TimeoutError:
                await self._end(batch, "expired")
                return
            batch.enter("finalizing", self.shelf.now)
        await self._end(batch, "cancelled" if batch.status == "cancelling" else "completed")

    async def _validate(self, batch: BatchRecord) -> bool:
        """Check the input file; returns whether the batch goes on."""
        path = self.shelf.storage.content(batch.tenant, batch.input_file_id)

        def check() -> tuple[int, list[LineError]]:
            with path.open("rb") as file:
                return check_lines(file, batch.endpoint)

        batch.total, batch.errors = await asyncio.to_thread(check)
        batch.enter("failed" if batch.errors else "in_progress", self.shelf.now)
        await self.shelf.save(batch)
        return not batch.errors

    async def _answer_all(self, batch: BatchRecord) -> None:
        """Answer the lines that have no answer yet."""
        done = await self._resume(batch)
        path = self.shelf.storage.content(batch.tenant, batch.input_file_id)
        own = asyncio.Semaphore(CONCURRENT_LINES)
        with path.open("rb") as file:
            async with asyncio.TaskGroup() as group:
                for _, text in lines(file):
                    line = await asyncio.to_thread(read_line, text, batch.endpoint)
                    if line.custom_id not in done:
                        await own.acquire()
                        task = group.create_task(self._answer(batch, line))
                        task.add_done_callback(lambda _: own.release())

    async def _resume(self, batch: BatchRecord) -> set[str]:
        """The ids of the lines that an earlier process has answered, which the counts have from now on."""
        answered = await self.shelf.answers(batch, batch.output_id)
        failed = await self.shelf.answers(batch, batch.error_id)
        batch.completed, batch.failed = len(answered), len(failed)
        return {json.loads(text)["custom_id"] for text in (*answered, *failed)}

    async def _answer(self, batch: BatchRecord, line: Line) -> None:
        """Answer a line, and write the answer to the disk."""
        request_id = f"batch_req_{secrets.token_hex(12)}"
        status, body = await self._patiently(batch, line, request_id)
        answer = {
            "id": request_id,
            "custom_id": line.custom_id,
            "response": {"status_code": status, "request_id": request_id, "body": body},
            "error": None,
        }
        text = await asyncio.to_thread(lambda: json.dumps(answer).encode() + b"\n")
        # Shielded, because the tenant has paid for it.
        await asyncio.shield(self._keep(batch, text, ok=status == 200))

    async def _keep(self, batch: BatchRecord, text: bytes, ok: bool) -> None:
        """Write an answer to the disk, and count it."""
        async with self._writing:
            await self.shelf.add_answer(batch, batch.output_id if ok else batch.error_id, text)
            batch.completed += ok
            batch.failed += not ok

    async def _patiently(self, batch: BatchRecord, line: Line, request_id: str) -> tuple[int, Any]:
        """The status and body of a line's answer. Waits as long as the tenant's limits refuse it."""
        attempt = 1
        while True:
            try:
                async with self._places:
                    await self.drain.idle()
                    return 200, await self._generate(batch, line, request_id)
            except (ShuttingDown, UnknownTenant):
                raise
            except RetryLater as error:
                if error.retry_after is None:
                    return KINDS[type(error)].status, domain_error_body(error, request_id)
                pause = error.retry_after
            except FaaSMoEError as error:
                status = KINDS[type(error)].status
                if status < 500 or attempt == ATTEMPTS:
                    return status, domain_error_body(error, request_id)
                attempt += 1
                pause = 1.0
            await asyncio.sleep(min(pause, WAIT_SECONDS))

    async def _generate(self, batch: BatchRecord, line: Line, request_id: str) -> Any:
        """The body of a line's answer, as its endpoint would have given it."""
        model = self.models.asked(line.body)
        head = AnswerHead(secrets.token_hex(12), model, int(time.time()), self.fingerprint)
        answer = self.endpoints[batch.endpoint](line.body, head)
        if answer.request.stream:
            raise BadRequest("stream: a batch's answers do not stream", "stream")
        tenant = await self.tenant_of(batch.tenant)
        if not is_of(batch, tenant):
            raise UnknownTenant("the batch's tenant was removed")
        caller = Caller(tenant, request_id, batch.endpoint, RequestTiming(), background=True)
        async with self.service.start(answer.request, caller) as active:
            pieces = await active.whole()
        return answer.whole(pieces, active.usage)

    async def _end(self, batch: BatchRecord, status: Status) -> None:
        """Publish the answers, and end the batch in that state."""
        try:
            async with self._writing:
                batch.output_file_id = await self.shelf.publish_answers(batch, batch.output_id, "output")
                batch.error_file_id = await self.shelf.publish_answers(batch, batch.error_id, "error")
            batch.enter(status, self.shelf.now)
            await self.shelf.save(batch)
        except StorageFull as error:
            logger.error("a batch cannot be saved: %s", error, extra={"tenant": batch.tenant})

    async def _sweep(self) -> None:
        """Remove expired files and batches at regular intervals."""
        while True:
            await self.shelf.remove_old()
            await asyncio.sleep(SWEEP_SECONDS)

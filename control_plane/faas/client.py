"""A client of the OpenFaaS REST API that faas-cli uses: it deploys, lists and scales functions."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import MappingProxyType
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from control_plane.errors import FunctionNotFound, GatewayError, ProtocolError
from control_plane.faas.connection import Address
from control_plane.faas.gateway_access import Credentials
from control_plane.faas.types import (
    Count,
    DeleteFunctionRequest,
    FunctionDeployment,
    FunctionStatus,
    ScaleServiceRequest,
    go_json,
)
from control_plane.http import connection_problem
from control_plane.partition.granularity import COMMUNITY_FUNCTIONS
from control_plane.validation import convert
from functions.contract.messages import REPORTED, ResidencyReport
from functions.contract.process import RESIDENCY_PATH
from functions.contract.safetensors_codec import CONTENT_TYPE
from functions.contract.secret import CALLER_HEADER, FunctionSecret

HEALTH_SECONDS = 2.0
"""The time within which a healthy gateway answers."""
LIST_SECONDS = 5.0
RESIDENCY_SECONDS = 10.0
"""The time that a function may take to drop weights."""
SCALE_SECONDS = 90.0
"""A gateway may let running calls finish before it stops a function."""
CHANGE_SECONDS = 120.0
"""A gateway may pull an image for a deployment, and wait 30 s for a container that it removes."""
CONNECT_SECONDS = 5.0
ATTEMPTS = 3
"""How often a deployment or a removal is tried."""
PAUSE_SECONDS = 1.0
"""The pause after the first attempt, which doubles after each further one."""
MAX_ANSWER_BYTES = 1 << 24
"""The largest answer that is read: some 10,000 functions."""
_MAX_ERROR_BYTES = 2000
_Report = msgspec.defstruct("_Report", [(name, Count, 0) for name in REPORTED])
"""A `ResidencyReport` from outside, whose counts are checked."""
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_COMMUNITY = "-ce"
"""The ending of the providers' names in OpenFaaS' community editions."""
_REFUSES_REPLICAS = frozenset({400, 403, 405, 409, 422, 501})
"""The statuses with which gateways refuse a number of replicas."""


class _Refusal(GatewayError):
    """The gateway answered with an error status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Gateway:
    """One gateway. Calls raise `GatewayError` if it cannot be reached, refuses, or sends a bad answer."""

    def __init__(self, url: URL, session: aiohttp.ClientSession, secret: FunctionSecret | None) -> None:
        self.url = url
        self.address = Address(url.host or "", url.port or 80)
        """The gateway's host and port, for invocations."""
        self._session = session
        self._secret = secret

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, url: URL, credentials: Credentials | None, secret: FunctionSecret | None = None
    ) -> AsyncIterator["Gateway"]:
        """A client for the gateway at `url`, whose connections are closed at the end of the context.

        Its calls of functions prove that it has the functions' `secret`.
        """
        # An answer that is not compressed has a known size.
        headers = {"Accept-Encoding": "identity"}
        if credentials:
            headers["Authorization"] = credentials.basic_auth
        async with aiohttp.ClientSession(
            # No limit of connections: calls that hang must not keep others waiting.
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            auto_decompress=False,
        ) as session:
            yield cls(url, session, secret)

    async def deploy(self, deployment: FunctionDeployment) -> None:
        """Update the function, or create it if it does not exist."""
        await _retry(partial(self._deploy, deployment.to_json()))

    async def create(self, deployment: FunctionDeployment) -> None:
        """Create the function. The gateway refuses if it exists."""
        await _retry(
            partial(self._request, "POST", "/system/functions", CHANGE_SECONDS, deployment.to_json())
        )

    async def remove(self, function: str) -> None:
        """Delete the function, if it exists."""
        await _retry(partial(self._remove, DeleteFunctionRequest(function).to_json()))

    async def store_secret(self, name: str, value: str) -> None:
        """Create or replace a secret."""
        await _retry(partial(self._store_secret, {"name": name, "value": value}))

    async def max_functions(self) -> int | None:
        """The most functions that the gateway's edition allows; None for no limit."""
        try:
            info = await self._request("GET", "/system/info", LIST_SECONDS)
        except (FunctionNotFound, _Refusal):
            # Not every provider has this route.
            return None
        provider = info.get("provider", "") if isinstance(info, dict) else ""
        # A gateway nests its provider's description; a provider that is called directly has its name here.
        name = provider.get("provider", "") if isinstance(provider, dict) else provider
        return COMMUNITY_FUNCTIONS if str(name).endswith(_COMMUNITY) else None

    async def answers(self) -> bool:
        """Whether the gateway can be reached and is healthy."""
        try:
            await self._request("GET", "/healthz", HEALTH_SECONDS)
        except GatewayError:
            return False
        return True

    async def functions(self) -> list[FunctionStatus]:
        """All deployed functions."""
        answer = await self._request("GET", "/system/functions", LIST_SECONDS)
        try:
            return [FunctionStatus.from_json(function) for function in convert(answer, list[Any])]
        except ValueError as error:
            raise GatewayError(
                f"the gateway at {self.url} lists functions in an unknown way: {error}"
            ) from error

    async def scale(self, function: str, replicas: int) -> bool:
        """Set the number of replicas. Returns False if the gateway refuses this number.

        Raises `FunctionNotFound`.
        """
        body = ScaleServiceRequest(function, replicas).to_json()
        try:
            await self._request("POST", f"/system/scale-function/{function}", SCALE_SECONDS, body)
        except _Refusal as refusal:
            if refusal.status in _REFUSES_REPLICAS:
                return False
            raise
        return True

    async def limit_residency(self, function: str, nbytes: int) -> ResidencyReport:
        """Limit the weights that a running function may hold to `nbytes`; returns its new report."""
        return await self._residency("PUT", function, {"limit_bytes": nbytes})

    async def release_residency(self, function: str) -> ResidencyReport:
        """Have a running function drop all weights that no call uses; returns its new report."""
        return await self._residency("DELETE", function)

    async def keep_awake(self, function: str, invocation: bytes, seconds: float) -> None:
        """Call the function with an invocation without rows, so that its gateway sees that it is in use."""
        headers = {"Content-Type": CONTENT_TYPE, **self._proof(function)}
        await self._send("POST", f"/function/{function}", seconds, data=invocation, headers=headers)

    async def _deploy(self, body: object) -> None:
        try:
            await self._request("PUT", "/system/functions", CHANGE_SECONDS, body)
        except FunctionNotFound:
            await self._request("POST", "/system/functions", CHANGE_SECONDS, body)

    async def _store_secret(self, body: object) -> None:
        try:
            await self._request("PUT", "/system/secrets", CHANGE_SECONDS, body)
        except (FunctionNotFound, _Refusal):
            # Gateways refuse to replace what does not exist, with different statuses.
            await self._request("POST", "/system/secrets", CHANGE_SECONDS, body)

    async def _remove(self, body: object) -> None:
        with suppress(FunctionNotFound):
            await self._request("DELETE", "/system/functions", CHANGE_SECONDS, body)

    async def _residency(self, method: str, function: str, body: object = None) -> ResidencyReport:
        path = f"/function/{function}{RESIDENCY_PATH}"
        answer = await self._request(method, path, RESIDENCY_SECONDS, body, headers=self._proof(function))
        try:
            return ResidencyReport(**msgspec.structs.asdict(convert(go_json(answer), _Report)))
        except ValueError as error:
            raise ProtocolError(
                f"function {function} reports its weights in an unknown way: {error}"
            ) from error

    def _proof(self, function: str) -> dict[str, str]:
        """The header that a call of the function needs."""
        return {} if self._secret is None else {CALLER_HEADER: self._secret.caller_proof(function)}

    async def _request(
        self,
        method: str,
        path: str,
        seconds: float,
        body: object = None,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> Any:
        """The decoded JSON of the answer; None if the answer is not JSON."""
        content_type, answer = await self._send(method, path, seconds, json=body, headers=headers)
        try:
            return msgspec.json.decode(answer) if content_type == "application/json" else None
        except (ValueError, RecursionError) as error:
            raise GatewayError(f"the gateway at {self.url} sends JSON that cannot be read: {error}") from None

    async def _send(self, method: str, path: str, seconds: float, **content: Any) -> tuple[str, bytearray]:
        """The type and the body of an answer that comes within so many seconds."""
        url, timeout = self.url.join(URL(path)), aiohttp.ClientTimeout(seconds, sock_connect=CONNECT_SECONDS)
        request = partial(self._session.request, method, url, timeout=timeout, allow_redirects=False)
        try:
            async with request(**content) as answer:
                if answer.status >= 300:
                    raise self._error(answer.status, _text(await _first(answer, _MAX_ERROR_BYTES)))
                body = await _first(answer, MAX_ANSWER_BYTES + 1)
                if len(body) > MAX_ANSWER_BYTES:
                    raise GatewayError(f"the gateway at {self.url} sends more than {MAX_ANSWER_BYTES} bytes")
                return answer.content_type, body
        except (aiohttp.ClientError, ValueError) as error:
            raise GatewayError(
                f"no OpenFaaS gateway answers at {self.url}: {connection_problem(error)}"
            ) from error
        except TimeoutError as error:
            raise GatewayError(f"the gateway at {self.url} did not answer within {seconds:g} s") from error

    def _error(self, status: int, text: str) -> GatewayError:
        if status == 401:
            return _Refusal(f"the gateway at {self.url} refuses the user or password", status)
        if status == 404:
            return FunctionNotFound(f"the gateway at {self.url}: {text or 'not found'}")
        return _Refusal(f"the gateway at {self.url} answered {status}: {text}", status)


async def _retry(change: Callable[[], Awaitable[object]]) -> None:
    """Make a change, in up to `ATTEMPTS` attempts unless the gateway says that the request is wrong.

    A gateway may fail in the middle of an update, after it has removed the function, or answer a removal
    with 500 because the function is just starting.
    """
    for attempt in range(ATTEMPTS):
        try:
            await change()
            return
        except GatewayError as error:
            if attempt == ATTEMPTS - 1 or (isinstance(error, _Refusal) and error.status < 500):
                raise
            await asyncio.sleep(PAUSE_SECONDS * 2**attempt)


async def _first(answer: aiohttp.ClientResponse, most: int) -> bytearray:
    """The first bytes of the answer's body, at most `most`."""
    body = bytearray()
    while len(body) < most and (part := await answer.content.read(most - len(body))):
        body += part
    return body


def _text(body: bytearray) -> str:
    """A gateway's error message on one line, for logs and terminals."""
    text = body.decode(errors="replace")[:500]
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())

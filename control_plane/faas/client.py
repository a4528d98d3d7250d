"""A client of the OpenFaaS REST API that faas-cli uses: it deploys, lists and scales functions."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
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

HEALTH_SECONDS = 2.0
"""The time within which a healthy gateway answers."""
_Report = msgspec.defstruct("_Report", [(name, Count, 0) for name in REPORTED])
"""A `ResidencyReport` from outside, whose counts are checked."""
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

    def __init__(self, url: URL, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.address = Address(url.host or "", url.port or 80)
        """The gateway's host and port, for invocations."""
        self._session = session

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: URL, credentials: Credentials | None) -> AsyncIterator["Gateway"]:
        """A client for the gateway at `url`, whose connections are closed at the end of the context."""
        headers = {"Authorization": credentials.basic_auth} if credentials else None
        # A gateway may start a process or pull an image before it answers a deployment.
        timeout = aiohttp.ClientTimeout(total=120, connect=5)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            yield cls(url, session)

    async def deploy(self, deployment: FunctionDeployment) -> None:
        """Update the function, or create it if it does not exist."""
        body = deployment.to_json()
        try:
            await self._request("PUT", "/system/functions", body)
        except FunctionNotFound:
            await self._request("POST", "/system/functions", body)

    async def remove(self, function: str) -> None:
        """Delete the function, if it exists."""
        body = DeleteFunctionRequest(function).to_json()
        with suppress(FunctionNotFound):
            await self._request("DELETE", "/system/functions", body)

    async def max_functions(self) -> int | None:
        """The most functions that the gateway's edition allows; None for no limit."""
        try:
            info = await self._request("GET", "/system/info")
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
            async with asyncio.timeout(HEALTH_SECONDS):
                await self._request("GET", "/healthz")
        except (GatewayError, TimeoutError):
            return False
        return True

    async def functions(self) -> list[FunctionStatus]:
        """All deployed functions."""
        answer = await self._request("GET", "/system/functions")
        try:
            return [FunctionStatus.from_json(function) for function in answer]
        except (ValueError, TypeError) as error:
            raise GatewayError(
                f"the gateway at {self.url} lists functions in an unknown way: {error}"
            ) from error

    async def scale(self, function: str, replicas: int) -> bool:
        """Set the number of replicas. Returns False if the gateway refuses this number.

        Raises `FunctionNotFound`.
        """
        body = ScaleServiceRequest(function, replicas).to_json()
        try:
            await self._request("POST", f"/system/scale-function/{function}", body)
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

    async def _residency(self, method: str, function: str, body: object = None) -> ResidencyReport:
        answer = await self._request(method, f"/function/{function}{RESIDENCY_PATH}", body)
        try:
            return ResidencyReport(**msgspec.structs.asdict(convert(go_json(answer), _Report)))
        except ValueError as error:
            raise ProtocolError(
                f"function {function} reports its weights in an unknown way: {error}"
            ) from error

    async def _request(self, method: str, path: str, body: object = None) -> Any:
        """The decoded JSON of the answer; None if the answer is not JSON."""
        try:
            async with self._session.request(method, self.url.join(URL(path)), json=body) as answer:
                if answer.status >= 400:
                    raise self._error(answer.status, (await answer.text()).strip()[:500])
                return await answer.json() if answer.content_type == "application/json" else None
        except (aiohttp.ClientError, ValueError) as error:
            raise GatewayError(
                f"no OpenFaaS gateway answers at {self.url}: {connection_problem(error)}"
            ) from error
        except TimeoutError as error:
            raise GatewayError(f"the gateway at {self.url} did not answer in time") from error

    def _error(self, status: int, text: str) -> GatewayError:
        if status == 401:
            return GatewayError(f"the gateway at {self.url} refuses the user or password")
        if status == 404:
            return FunctionNotFound(f"the gateway at {self.url}: {text or 'not found'}")
        return _Refusal(f"the gateway at {self.url} answered {status}: {text}", status)

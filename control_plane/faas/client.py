"""A client of the OpenFaaS REST API, as faas-cli speaks it: to deploy, look and scale, not to invoke."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import fields
from typing import Any

import aiohttp
from yarl import URL

from control_plane.errors import FunctionNotFound, GatewayError, ProtocolError
from control_plane.faas.connection import Address
from control_plane.faas.json_fields import as_object, count
from control_plane.faas.types import (
    DeleteFunctionRequest,
    FunctionDeployment,
    FunctionStatus,
    ScaleServiceRequest,
)
from control_plane.gateway_access import Credentials
from control_plane.http import connection_problem
from control_plane.partition.granularity import COMMUNITY_FUNCTIONS
from functions.contract.wire import ResidencyReport

_REPORTED = tuple(report_field.name for report_field in fields(ResidencyReport))
_COMMUNITY = "-ce"
"""How the names of the community editions' providers end."""
HEALTH_SECONDS = 2.0
_REFUSES_REPLICAS = frozenset({400, 403, 405, 409, 422, 501})


class _Refusal(GatewayError):
    """An answer that is an error, with its status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Gateway:
    """One gateway. Every call raises `GatewayError` when it is away, refuses, or answers nonsense."""

    def __init__(self, url: URL, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.address = Address(url.host or "", url.port or 80)
        """Where it listens."""
        self._session = session

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: URL, credentials: Credentials | None) -> AsyncIterator["Gateway"]:
        """A client whose connections are closed at the end of the context."""
        headers = {"Authorization": credentials.basic_auth} if credentials else None
        # A deployment may have to start a process or pull an image before it is answered.
        timeout = aiohttp.ClientTimeout(total=120, connect=5)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            yield cls(url, session)

    async def deploy(self, deployment: FunctionDeployment) -> None:
        """Create the function, or update it when it is there."""
        body = deployment.to_json()
        try:
            await self._request("PUT", "/system/functions", body)
        except FunctionNotFound:
            await self._request("POST", "/system/functions", body)

    async def remove(self, function: str) -> None:
        """Delete the function; one that is not there is no error."""
        body = DeleteFunctionRequest(function).to_json()
        with suppress(FunctionNotFound):
            await self._request("DELETE", "/system/functions", body)

    async def max_functions(self) -> int | None:
        """How many functions its edition allows; None for as many as there is memory."""
        try:
            info = await self._request("GET", "/system/info")
        except (FunctionNotFound, _Refusal):
            # Not every provider tells about itself.
            return None
        provider = info.get("provider", "") if isinstance(info, dict) else ""
        # A gateway tells of itself and of its provider; a provider by itself, of itself only.
        name = provider.get("provider", "") if isinstance(provider, dict) else provider
        return COMMUNITY_FUNCTIONS if str(name).endswith(_COMMUNITY) else None

    async def answers(self) -> bool:
        """Whether it is there and well."""
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                await self._request("GET", "/healthz")
        except (GatewayError, TimeoutError):
            return False
        return True

    async def functions(self) -> list[FunctionStatus]:
        """All functions that are deployed."""
        answer = await self._request("GET", "/system/functions")
        try:
            return [FunctionStatus.from_json(function) for function in answer]
        except (ValueError, TypeError) as error:
            raise GatewayError(
                f"the gateway at {self.url} lists functions in an unknown way: {error}"
            ) from error

    async def scale(self, function: str, replicas: int) -> bool:
        """Set the number of replicas; False when the gateway does not want so many, or so few.

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
        """Have a function that is awake hold at most so many bytes of weights; its report, after that."""
        return await self._residency("PUT", function, {"limit_bytes": nbytes})

    async def release_residency(self, function: str) -> ResidencyReport:
        """Have a function that is awake drop the weights that no call is using; its report, after that."""
        return await self._residency("DELETE", function)

    async def _residency(self, method: str, function: str, body: object = None) -> ResidencyReport:
        answer = await self._request(method, f"/function/{function}/_/residency", body)
        try:
            return ResidencyReport(**{name: count(as_object(answer, "report"), name) for name in _REPORTED})
        except ValueError as error:
            raise ProtocolError(
                f"function {function} reports its weights in an unknown way: {error}"
            ) from error

    async def _request(self, method: str, path: str, body: object = None) -> Any:
        """The decoded JSON of the answer, or None when it is not JSON."""
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

"""The autoscaler's requests to the gateways, each with a time limit."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from control_plane.errors import GatewayError
from control_plane.faas.gateways import Gateways
from control_plane.faas.types import FunctionStatus
from functions.contract.messages import ResidencyReport

LIST_SECONDS = 10.0
WAKE_SECONDS = 60.0
SLEEP_SECONDS = 90.0
"""The longest limit: a gateway may let running calls finish before it stops a function."""
RESIDENCY_SECONDS = 10.0
"""The time that a function may take to drop weights."""


@dataclass(frozen=True)
class ScalingRequests:
    """Raises the errors of `Gateways`, and a `GatewayError` for a request that takes too long."""

    gateways: Gateways

    async def functions(self) -> list[FunctionStatus]:
        """All deployed functions."""
        async with _time_limit("list its functions", LIST_SECONDS):
            return await self.gateways.functions()

    async def wake(self, name: str) -> bool:
        """Scale the function to one replica. Returns False if the gateway refuses."""
        async with _time_limit(f"wake {name}", WAKE_SECONDS):
            return await self.gateways.scale(name, 1)

    async def sleep(self, name: str) -> bool:
        """Scale the function to zero. Returns False if the gateway refuses."""
        async with _time_limit(f"scale {name} to zero", SLEEP_SECONDS):
            return await self.gateways.scale(name, 0)

    async def limit(self, name: str, nbytes: int) -> ResidencyReport:
        """Limit the weights that a running function may hold; returns its new report."""
        async with _time_limit(f"have {name} hold less", RESIDENCY_SECONDS):
            return await self.gateways.limit_residency(name, nbytes)

    async def release(self, name: str) -> ResidencyReport:
        """Have a running function drop its weights; returns its new report."""
        async with _time_limit(f"have {name} drop its weights", RESIDENCY_SECONDS):
            return await self.gateways.release_residency(name)


@asynccontextmanager
async def _time_limit(what: str, seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise GatewayError(f"the gateway did not {what} within {seconds:g} s") from error

"""Moves functions off a gateway that has been away for long, to the others that have room."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from control_plane.deployment.deploy import Found, deployment_of
from control_plane.deployment.placement import place
from control_plane.errors import ConfigError, GatewayError
from control_plane.faas.client import Gateway
from control_plane.faas.gateways import Gateways
from control_plane.partition.manifest import Manifest

PROBE_SECONDS = 2.0
AWAY_SECONDS = 10.0
"""For how long a gateway does not answer before its functions are moved. A restart takes less."""

logger = logging.getLogger(__name__)


@dataclass
class Failover:
    """One task, where there are several gateways."""

    manifest: Manifest
    gateways: Gateways
    image_prefix: str
    _away_since: dict[Gateway, float] = field(default_factory=dict)
    _told: set[Gateway] = field(default_factory=set)
    """Of which it is said already that there is no room for their functions."""
    _moved: dict[Gateway, set[str]] = field(default_factory=dict)
    """What is to be removed from a gateway once it is back."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The task runs for as long as the context lasts; with one gateway there is none."""
        if len(self.gateways.all) == 1:
            yield
            return
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def look(self, now: float) -> None:
        """One round: who is away, what is to be moved. Times are of one monotonic clock, in seconds."""
        answers = await asyncio.gather(*(gateway.answers() for gateway in self.gateways.all))
        there = [gateway for gateway, answer in zip(self.gateways.all, answers, strict=True) if answer]
        for gateway in self.gateways.all:
            try:
                if gateway in there:
                    await self._back(gateway)
                elif now - self._away_since.setdefault(gateway, now) >= AWAY_SECONDS and there:
                    await self._leave(gateway, there)
            except GatewayError as error:
                # The other gateways have their turn all the same.
                logger.warning("moving functions: %s", error)

    async def _run(self) -> None:
        while True:
            try:
                await self.look(asyncio.get_running_loop().time())
            except Exception:
                # The edge of the task: whatever one round meets, the next one comes.
                logger.exception("moving functions failed")
            await asyncio.sleep(PROBE_SECONDS)

    async def _leave(self, gateway: Gateway, there: Sequence[Gateway]) -> None:
        """Have other gateways serve what this one has."""
        lost = self.gateways.at(gateway)
        if not lost:
            return
        sizes = {block.function: block.nbytes for block in self.manifest.blocks if block.function in lost}
        try:
            found = await asyncio.gather(*map(Found.look, there))
            places = place(sizes, [each.site() for each in found])
        except ConfigError as error:
            if gateway not in self._told:
                self._told.add(gateway)
                logger.error("%s is away, and with it %d functions: %s", gateway.url, len(lost), error)
            return
        for target, names in zip(there, places, strict=True):
            for name in names:
                deployment = self.gateways.listed(name)
                await target.deploy(deployment or deployment_of(self.manifest, name, self.image_prefix))
                self.gateways.move(name, target)
                self._moved.setdefault(gateway, set()).add(name)
        logger.warning("%s is away: its %d functions are on other gateways now", gateway.url, len(lost))

    async def _back(self, gateway: Gateway) -> None:
        """Remove from a gateway that answers again what others have taken over."""
        self._away_since.pop(gateway, None)
        self._told.discard(gateway)
        for name in list(self._moved.get(gateway, ())):
            if self.gateways.of(name) is not gateway:
                await gateway.remove(name)
            self._moved[gateway].discard(name)

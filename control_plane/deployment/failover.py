"""Deploys functions again that a gateway has lost, or elsewhere if the gateway has stopped answering."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from control_plane.deployment.deploy import GatewayState, deployment_of
from control_plane.deployment.placement import place
from control_plane.deployment.stack import DIGEST_ANNOTATION
from control_plane.errors import ConfigError, GatewayError
from control_plane.faas.client import Gateway
from control_plane.faas.gateways import Gateways
from control_plane.faas.types import FunctionDeployment
from control_plane.partition.manifest import Manifest
from functions.contract.secret import SECRET_NAME, FunctionSecret

PROBE_SECONDS = 0.5
"""The time between two checks. A gateway that is killed and started again is away for longer."""
AWAY_SECONDS = 10.0
"""Seconds without an answer before a gateway's functions are moved; a restart takes less."""

logger = logging.getLogger(__name__)


@dataclass
class Failover:
    """Checks all gateways again and again, in a task of the event loop."""

    manifest: Manifest
    gateways: Gateways
    image_prefix: str
    secret: FunctionSecret | None = None
    """The secret that functions need, for gateways that have lost it or never had it."""
    _away_since: dict[Gateway, float] = field(default_factory=dict)
    _reported: set[Gateway] = field(default_factory=set)
    """Gateways for whose functions a lack of room has been logged."""
    _moved: dict[Gateway, set[str]] = field(default_factory=dict)
    """Functions to remove from each gateway when it answers again, since others serve them."""
    _failing: set[Gateway] = field(default_factory=set)
    """Gateways whose current error has been logged."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the task during the context."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def check(self, now: float) -> None:
        """Check all gateways once, and deploy functions if necessary; `now` is monotonic, in seconds."""
        answers = await asyncio.gather(*(gateway.answers() for gateway in self.gateways.all))
        present = [gateway for gateway, answer in zip(self.gateways.all, answers, strict=True) if answer]
        for gateway in self.gateways.all:
            try:
                if gateway in present:
                    await self._welcome(gateway)
                else:
                    self.gateways.failed(gateway)
                    if now - self._away_since.setdefault(gateway, now) >= AWAY_SECONDS and present:
                        await self._move_functions(gateway, present)
                self._failing.discard(gateway)
            except GatewayError as error:
                # An error with one gateway must not stop the check of the others.
                if gateway not in self._failing:
                    self._failing.add(gateway)
                    logger.warning("deploying functions again: %s", error)

    async def _run(self) -> None:
        while True:
            try:
                await self.check(asyncio.get_running_loop().time())
            except Exception:
                # The edge of the task: no error of one round may end it.
                logger.exception("deploying functions again failed")
            await asyncio.sleep(PROBE_SECONDS)

    async def _move_functions(self, gateway: Gateway, present: Sequence[Gateway]) -> None:
        """Deploy the functions of one gateway to others, and send calls there."""
        lost = self.gateways.at(gateway)
        if not lost:
            return
        sizes = {block.function: block.nbytes for block in self.manifest.blocks if block.function in lost}
        try:
            states = await asyncio.gather(*map(GatewayState.read, present))
            places = place(sizes, [state.capacity() for state in states])
        except ConfigError as error:
            if gateway not in self._reported:
                self._reported.add(gateway)
                logger.error("%s is unreachable; %d functions cannot move: %s", gateway.url, len(lost), error)
            return
        for target, names in zip(present, places, strict=True):
            if names:
                await self._store_secret(target)
            for name in names:
                await target.deploy(self._deployment(name))
                self.gateways.move(name, target)
                self._moved.setdefault(gateway, set()).add(name)
        logger.warning("%s is unreachable: its %d functions moved to other gateways", gateway.url, len(lost))

    async def _welcome(self, gateway: Gateway) -> None:
        """Make good what has changed while the gateway was away, if it was."""
        self._away_since.pop(gateway, None)
        self._reported.discard(gateway)
        if self.gateways.has_failed(gateway):
            with suppress(GatewayError):
                await self.gateways.functions()
        # The gateway answers before its provider does. Until then nothing is known about its functions.
        if not self.gateways.has_failed(gateway):
            await self._restore(gateway)
            await self._clean_up(gateway)

    async def _restore(self, gateway: Gateway) -> None:
        """Deploy the functions again that the gateway has lost."""
        if not (lost := self.gateways.lost(gateway)):
            return
        try:
            await self._store_secret(gateway)
            for name in lost:
                # Not an update: somebody else may have deployed it meanwhile.
                await gateway.create(self._deployment(name))
            logger.warning("%s had lost %d functions, which were deployed again", gateway.url, len(lost))
        finally:
            with suppress(GatewayError):
                await self.gateways.functions()

    async def _clean_up(self, gateway: Gateway) -> None:
        """Remove the functions that other gateways have taken over from a gateway that answers again."""
        for name in list(self._moved.get(gateway, ())):
            if self.gateways.of(name) is not gateway:
                await gateway.remove(name)
            self._moved[gateway].discard(name)

    async def _store_secret(self, gateway: Gateway) -> None:
        if self.secret is not None:
            await gateway.store_secret(SECRET_NAME, self.secret.value)

    def _deployment(self, name: str) -> FunctionDeployment:
        """The function as it was deployed. If ours is the same, it is better: lists may leave fields out."""
        ours = deployment_of(self.manifest, name, self.image_prefix, self.secret)
        listed = self.gateways.listed(name) or ours
        same = listed.annotations.get(DIGEST_ANNOTATION) == ours.annotations[DIGEST_ANNOTATION]
        return ours if same else listed

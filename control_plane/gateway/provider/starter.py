"""Starts processes of functions, retries when they crash before they are ready, and ends them."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from control_plane.errors import FunctionUnavailable
from control_plane.faas.types import FunctionDeployment
from control_plane.gateway.provider.image import LocalImage
from control_plane.gateway.provider.log import FunctionLog
from control_plane.gateway.provider.process import FunctionProcess, Timeouts
from control_plane.gateway.provider.secret_store import SecretStore
from control_plane.gateway.provider.vanishing import VanishedSockets
from functions.contract.secret import SECRETS_VARIABLE

START_TRIES = 3

_INHERITED = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH", "FAASMOE_KERNEL")
_FIRST_PAUSE_S = 0.2


@dataclass(frozen=True)
class FunctionStarter:
    """Runs the image's program, for any function."""

    image: LocalImage
    secrets: SecretStore
    timeouts: Timeouts
    vanished: VanishedSockets | None = None
    """Where processes leave their connections when they end; None if they finish their calls instead."""

    async def start(
        self, deployment: FunctionDeployment, log: FunctionLog, spawned: Callable[[FunctionProcess], None]
    ) -> FunctionProcess:
        """Start a process and wait until it is ready; if that fails or is cancelled, no process is left.

        `spawned` is called with each process that is tried. Raises FunctionUnavailable.
        """
        name = deployment.service
        try:
            async with asyncio.timeout(self.timeouts.start):
                return await self._start_with_retries(deployment, log, spawned)
        except TimeoutError:
            raise FunctionUnavailable(
                f"function {name} was not ready after {self.timeouts.start:g} s"
            ) from None
        except OSError as error:
            raise FunctionUnavailable(f"function {name} could not be started: {error}") from error

    async def end(self, process: FunctionProcess) -> None:
        """End a process; returns when it has exited."""
        if self.vanished is None or not process.alive:
            await process.stop(self.timeouts)
        else:
            self.vanished.take(process.pid)
            await process.kill(self.timeouts)

    async def _start_with_retries(
        self, deployment: FunctionDeployment, log: FunctionLog, spawned: Callable[[FunctionProcess], None]
    ) -> FunctionProcess:
        last_words = ""
        for attempt in range(START_TRIES):
            if attempt:
                await asyncio.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
            environment = self._environment(deployment)
            process = await FunctionProcess.spawn(self.image.command, environment, deployment.service, log)
            spawned(process)
            if await self._becomes_ready(process):
                return process
            last_words = process.last_words
        raise FunctionUnavailable(
            f"function {deployment.service} crashed at each of {START_TRIES} starts, {last_words}"
        )

    def _environment(self, deployment: FunctionDeployment) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        secrets = {SECRETS_VARIABLE: str(self.secrets.folder.resolve())} if deployment.secrets else {}
        # Lines reach the log as soon as they are written.
        unbuffered = {"PYTHONUNBUFFERED": "1"}
        # The image's variables override the deployment's: a stack file has paths inside a container.
        return {**inherited, **unbuffered, **deployment.env_vars, **self.image.environment, **secrets}

    async def _becomes_ready(self, process: FunctionProcess) -> bool:
        try:
            async with aiohttp.ClientSession() as session:
                ready = await process.wait_ready(session)
        except BaseException:
            await process.kill(self.timeouts)
            raise
        return ready

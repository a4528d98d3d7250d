"""Starts processes of functions, retries when they crash before they are ready, and ends them."""

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import aiohttp

from control_plane.errors import FunctionUnavailable
from control_plane.faas.types import FunctionDeployment
from control_plane.gateway.provider.forking.fork_server import ForkServerError
from control_plane.gateway.provider.forking.fork_servers import ForkServers
from control_plane.gateway.provider.image import LocalImage
from control_plane.gateway.provider.log import FunctionLog
from control_plane.gateway.provider.process import Child, FunctionProcess, Timeouts, start_program
from control_plane.gateway.provider.secret_store import SecretStore
from control_plane.gateway.provider.vanishing import VanishedSockets
from functions.contract.secret import SECRETS_VARIABLE

START_TRIES = 3

_INHERITED = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH", "FAASMOE_KERNEL")
_FIRST_PAUSE_S = 0.2


@dataclass(frozen=True)
class FunctionStarter:
    """Starts a process of the image for any function: by fork where that is possible, or else its program."""

    image: LocalImage
    secrets: SecretStore
    timeouts: Timeouts
    fork_servers: ForkServers | None = None
    """Start processes faster; None starts programs only."""
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
            start = partial(self._start_child, deployment)
            process = await FunctionProcess.spawn(start, deployment.service, log)
            spawned(process)
            if await self._becomes_ready(process):
                return process
            last_words = process.last_words
        raise FunctionUnavailable(
            f"function {deployment.service} crashed at each of {START_TRIES} starts, {last_words}"
        )

    async def _start_child(self, deployment: FunctionDeployment, listener: socket.socket) -> Child:
        # Lines reach the log as soon as they are written.
        own = {
            "PYTHONUNBUFFERED": "1",
            **{name: os.environ[name] for name in _INHERITED if name in os.environ},
        }
        secrets = {SECRETS_VARIABLE: str(self.secrets.folder.resolve())} if deployment.secrets else {}
        # The image's variables override the deployment's: a stack file has paths inside a container.
        environment = {**own, **deployment.env_vars, **self.image.environment, **secrets}
        if self.fork_servers is not None:
            with suppress(ForkServerError):
                title = f"{self.image.title} {deployment.service}"
                return await self.fork_servers.fork(own, title, environment, listener)
        return await start_program(self.image.command, environment, listener)

    async def _becomes_ready(self, process: FunctionProcess) -> bool:
        try:
            async with aiohttp.ClientSession() as session:
                ready = await process.wait_ready(session)
        except BaseException:
            await process.kill(self.timeouts)
            raise
        return ready

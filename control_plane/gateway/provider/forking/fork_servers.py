"""The fork servers of a gateway: one for the present code and settings, others while their functions run."""

import asyncio
import logging
import socket
from collections.abc import Mapping, Sequence

from control_plane.gateway.provider.forking.fork_server import ForkServer, ForkServerError
from control_plane.gateway.provider.forking.forked_process import ForkedProcess

_TRIES = 2
RETRY_SECONDS = 60.0
"""For so long after a server could not be started, none is tried."""

_logger = logging.getLogger(__name__)


class ForkServers:
    """The server of the present code and settings, and those before it whose processes still run.

    Args:
        command: runs a server.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._servers: list[ForkServer] = []
        self._one_start = asyncio.Lock()
        self._retry_at = 0.0

    def memory_bytes(self) -> int:
        """The memory of all servers."""
        return sum(server.memory_bytes for server in self._servers if server.alive)

    async def fork(
        self, own: Mapping[str, str], title: str, environment: Mapping[str, str], listener: socket.socket
    ) -> ForkedProcess:
        """Start a process by the server whose own environment is `own`, which is started if there is none.

        Raises ForkServerError, and OSError if the system has no room for a process.
        """
        server = None
        for _ in range(_TRIES):
            async with self._one_start:
                server = await self._server(own, instead_of=server)
            if process := await server.fork(title, environment, listener):
                return process
        raise ForkServerError(f"{_TRIES} fork servers in a row have ended, hang, or have old code")

    async def close(self) -> None:
        """End all servers, and the processes that still run."""
        async with self._one_start:
            await asyncio.gather(*(server.close() for server in self._servers))
            self._servers.clear()

    async def _server(self, own: Mapping[str, str], instead_of: ForkServer | None = None) -> ForkServer:
        """The newest server, or another one if it has ended, hangs, is outdated, or has other settings."""
        for server in [server for server in self._servers if not server.alive]:
            self._servers.remove(server)
            await server.close()
        if self._servers:
            newest = self._servers[-1]
            if newest.answers and newest is not instead_of and newest.environment == own:
                return newest
            await newest.retire()
        loop = asyncio.get_running_loop()
        if loop.time() < self._retry_at:
            raise ForkServerError("no fork server could be started a moment ago")
        try:
            self._servers.append(await ForkServer.start(self._command, own))
        except ForkServerError as error:
            self._retry_at = loop.time() + RETRY_SECONDS
            _logger.warning("functions are started as programs, which takes longer: %s", error)
            raise
        return self._servers[-1]

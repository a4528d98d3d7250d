"""Asks a function for its health. An answer that came in time counts, even if this process read it late."""

import asyncio
import socket
from contextlib import suppress
from typing import Self

import httptools

from control_plane.faas.wire.response_reader import HeaderTooLarge, ResponseReader
from control_plane.readable import until_readable
from functions.contract.process import HEALTH_PATH

_REQUEST = f"GET {HEALTH_PATH} HTTP/1.1\r\nHost: function\r\n\r\n".encode()
_MOST_BYTES = 4096
"""Of an answer."""


class HealthProbe:
    """A connection of its own, which stays open: others cannot keep it out by taking all connections."""

    def __init__(self, port: int) -> None:
        self._address = ("127.0.0.1", port)
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()

    async def ask(self, seconds: float) -> bool:
        """Whether an answer was read in time. If not, `has_arrived` may be asked, and then `hang_up`.

        Raises OSError if the connection is refused or breaks.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._ask()
        except TimeoutError:
            return False
        except OSError:
            self.hang_up()
            raise
        return True

    def has_arrived(self) -> bool:
        """Whether there are bytes of an answer now. This process may have been too busy to read them."""
        if self._socket is not None:
            with suppress(OSError):
                return bool(self._socket.recv(1, socket.MSG_PEEK))
        return False

    def hang_up(self) -> None:
        """Ask over a new connection the next time."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        if self._socket is None:
            self._socket = socket.socket()
            self._socket.setblocking(False)
            await loop.sock_connect(self._socket, self._address)
        await loop.sock_sendall(self._socket, _REQUEST)
        reader, buffer = ResponseReader(_MOST_BYTES), memoryview(bytearray(_MOST_BYTES))
        try:
            while reader.response is None:
                # Not `sock_recv`: bytes that it has received are lost if the time is up in the same moment.
                await until_readable(self._socket.fileno())
                place = reader.place(buffer)
                nbytes = self._socket.recv_into(place)
                if nbytes == 0:
                    raise ConnectionResetError("hung up")
                reader.take(place[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, HeaderTooLarge) as error:
            raise ConnectionError(f"does not speak HTTP: {error!r}") from error
        finally:
            reader.close()
        if not reader.keep_alive:
            self.hang_up()

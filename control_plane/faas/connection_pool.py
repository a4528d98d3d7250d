"""Open connections by address: those that wait for their next invocation, and those that carry prefetches."""

import time
from collections.abc import Set

from control_plane.faas.connection import Address, Connection, ConnectionLost
from functions.contract.messages import Invocation
from functions.contract.safetensors_codec import CONTENT_TYPE

PREFETCH_SECONDS = 0.1
"""The time to send a prefetch; one that takes longer is not worth it."""


class ConnectionPool:
    """Keeps connections open between invocations. One thread uses it."""

    def __init__(self, connect_timeout: float) -> None:
        """`connect_timeout` bounds how long a new connection may take, in seconds."""
        self._connect_timeout = connect_timeout
        self._idle: dict[Address, list[Connection]] = {}

    def take(self, address: Address, deadline: float) -> Connection:
        """An idle connection to the address, or a new one. Raises `ConnectionLost` or `TimeoutError`."""
        idle = self._idle.get(address, [])
        while idle:
            connection = idle.pop()
            # No answer is due on an idle connection, so anything to read means that the peer has closed it.
            if not connection.readable:
                return connection
            connection.close()
        return Connection(address, min(deadline, time.monotonic() + self._connect_timeout))

    def release(self, connection: Connection) -> None:
        """Keep the connection for the next invocation, or close it if its peer wants no more requests."""
        if connection.reusable:
            self._idle.setdefault(connection.address, []).append(connection)
        else:
            connection.close()

    def keep_only(self, addresses: Set[Address]) -> None:
        """Close the idle connections to all other addresses."""
        for address in self._idle.keys() - addresses:
            for connection in self._idle.pop(address):
                connection.close()

    def close(self) -> None:
        """Close every idle connection."""
        self.keep_only(frozenset())


class PrefetchConnections:
    """Sends prefetches to functions without waiting for their answers. One thread uses it.

    Each address has one connection for this purpose alone: on a shared one, the unread answer to a prefetch
    would be in the way of the next invocation's answer.
    """

    def __init__(self) -> None:
        self._connections: dict[Address, Connection] = {}

    def send(self, address: Address, invocation: Invocation) -> None:
        """Send one prefetch. Drops it if the address cannot be reached or is still busy with the last one."""
        deadline = time.monotonic() + PREFETCH_SECONDS
        connection = self._connections.pop(address, None)
        try:
            if connection is None:
                connection = Connection(address, deadline)
            elif not connection.readable:
                # The last prefetch is not answered yet; another one would only queue behind it.
                self._connections[address] = connection
                return
            else:
                connection.receive(deadline)
            connection.send("/", CONTENT_TYPE, invocation.encode(), deadline)
            self._connections[address] = connection
        except (ConnectionLost, TimeoutError):
            if connection is not None:
                connection.close()

    def keep_only(self, addresses: Set[Address]) -> None:
        """Close the connections to all other addresses."""
        for address in self._connections.keys() - addresses:
            self._connections.pop(address).close()

    def close(self) -> None:
        """Close every connection."""
        self.keep_only(frozenset())

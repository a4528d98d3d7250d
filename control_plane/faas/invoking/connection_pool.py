"""Open connections by address: those that wait for their next invocation, and those that carry prefetches."""

from collections.abc import Set

from control_plane.faas.connection import Address, Connection, ConnectionLost
from functions.contract.messages import Invocation
from functions.contract.safetensors_codec import CONTENT_TYPE


class ConnectionPool:
    """Keeps connections open between invocations. One thread uses it."""

    def __init__(self) -> None:
        self._idle: dict[Address, list[Connection]] = {}

    def idle(self, address: Address) -> Connection | None:
        """An idle connection to the address, which its peer may have closed; None if there is none."""
        idle = self._idle.get(address)
        return idle.pop() if idle else None

    def take(self, address: Address, senses_loss: bool) -> Connection:
        """An idle connection to the address, or a new one; see `Connection`. Raises `ConnectionLost`."""
        while connection := self.idle(address):
            # No answer is due on an idle connection, so anything to read means that the peer has closed it.
            if not connection.readable:
                return connection
            connection.close()
        return Connection(address, senses_loss)

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
    """Sends prefetches to functions, and waits neither for their answers nor for the network.

    Each address has one connection for this purpose alone: on a shared one, the unread answer to a prefetch
    would be in the way of the next invocation's answer.
    """

    def __init__(self) -> None:
        self._connections: dict[Address, Connection] = {}

    def send(self, address: Address, invocation: Invocation, max_answer_bytes: int, proof: str) -> None:
        """Send one prefetch. Drops it if the address cannot be reached or is still busy with the last one."""
        connection = self._connections.get(address)
        try:
            if connection is None:
                connection = self._connections[address] = Connection(address, senses_loss=True)
            else:
                connection.push()
                # Until the last prefetch is answered, another one would only queue behind it.
                if connection.sending or connection.read() is None:
                    return
                if not connection.reusable:
                    raise ConnectionLost("wants no more requests")
            connection.send("/", CONTENT_TYPE, invocation.encode(), max_answer_bytes, proof)
        except ConnectionLost:
            if connection is not None:
                connection.close()
                self._connections.pop(address, None)

    def keep_only(self, addresses: Set[Address]) -> None:
        """Close the connections to all other addresses."""
        for address in self._connections.keys() - addresses:
            self._connections.pop(address).close()

    def close(self) -> None:
        """Close every connection."""
        self.keep_only(frozenset())

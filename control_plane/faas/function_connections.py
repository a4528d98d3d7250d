"""Chooses the connection for each call of a function: to its own address, or through its gateway."""

import time
from collections.abc import Callable

from control_plane.faas.addresses import AddressBook
from control_plane.faas.connection import Address, Connection
from control_plane.faas.connection_pool import ConnectionPool, PrefetchConnections
from functions.contract.messages import Invocation


class FunctionConnections:
    """Connections to functions and gateways, and the functions' addresses. One thread uses it."""

    def __init__(
        self, gateway_of: Callable[[str], Address], gateway_interval: float, connect_timeout: float
    ) -> None:
        """`gateway_of` returns the address of a function's current gateway. The times are seconds."""
        self._gateway_of = gateway_of
        self._addresses = AddressBook(gateway_interval)
        self._pool = ConnectionPool(connect_timeout)
        self._prefetches = PrefetchConnections()
        self._learned: set[str] = set()
        """The functions that have answered through a gateway."""

    def direct_address(self, function: str) -> Address | None:
        """The function's own address, or None if the next call is to go through the gateway."""
        return self._addresses.direct(function, time.monotonic())

    def last_address(self, function: str) -> Address | None:
        """The function's own address at its last answer, if it can be reached from this machine."""
        return self._addresses.last_known(function)

    def take(self, address: Address, deadline: float) -> Connection:
        """A connection for one call. Raises `ConnectionLost` or `TimeoutError`."""
        return self._pool.take(address, deadline)

    def release(self, connection: Connection) -> None:
        """Keep a connection for later calls, after its response was read."""
        self._pool.release(connection)

    def learn(self, function: str, address: Address) -> None:
        """Note a function's own address, which came with an answer through the gateway."""
        # Behind a gateway on another machine, a loopback address means that machine, not this one.
        if self._gateway_of(function).is_loopback or not address.is_loopback:
            self._addresses.learn(function, address, time.monotonic())
        self._learned.add(function)
        # A function that was scaled to zero has a new address when it wakes; nothing uses the old one again.
        in_use = self._addresses.known() | set(map(self._gateway_of, self._learned))
        self._pool.keep_only(in_use)
        self._prefetches.keep_only(in_use)

    def confirm(self, address: Address) -> None:
        """Note that a direct call was answered."""
        self._addresses.confirm(address)

    def forget(self, function: str) -> None:
        """Note that a direct call failed, so that the next one goes through the gateway."""
        self._addresses.forget(function, time.monotonic())

    def prefetch(self, function: str, invocation: Invocation) -> None:
        """Send a prefetch if the function's own address is known. Waits for no answer, ignores failures."""
        address = self._addresses.last_known(function)
        if address is not None:
            self._prefetches.send(address, invocation)

    def close(self) -> None:
        """Close all connections that are not in use."""
        self._pool.close()
        self._prefetches.close()

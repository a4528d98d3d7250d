"""Chooses the connection for each call of a function: to its own address, or through its gateway."""

import hmac
import logging
import time
from collections.abc import Callable, Iterable
from functools import cache

from control_plane.faas.addresses import AddressBook, Networks, direct_address
from control_plane.faas.call import Call
from control_plane.faas.connection import Address, Connection, last_bytes, request
from control_plane.faas.invoking.connection_pool import ConnectionPool, PrefetchConnections
from control_plane.faas.wire import plain_calls
from control_plane.faas.wire.results import max_answer_bytes
from functions.contract.messages import Invocation
from functions.contract.safetensors_codec import CONTENT_TYPE
from functions.contract.secret import FunctionSecret

_logger = logging.getLogger(__name__)


class FunctionConnections:
    """Connections to functions and gateways, and the functions' addresses. One thread uses it."""

    def __init__(
        self, gateway_of: Callable[[str], Address], networks: Networks, secret: FunctionSecret | None
    ) -> None:
        """`gateway_of` returns the address of a function's gateway; `networks` may be called directly."""
        self._gateway_of = gateway_of
        self._networks = networks
        self.caller_proof: Callable[[str], str] = cache(secret.caller_proof) if secret else _no_proof
        """What to send to a function."""
        self.function_proof: Callable[[str], bytes] = cache(_proof_of(secret))
        """What a function has to send; empty if there is no secret."""
        self._addresses = AddressBook()
        self._pool = ConnectionPool()
        self._prefetches = PrefetchConnections()
        self._learned: dict[str, str] = {}
        """What each function has announced as its address, in its last answer through a gateway."""

    def is_proven(self, function: str, proof: bytes) -> bool:
        """Whether an answer with this proof is the function's."""
        expected = self.function_proof(function)
        return not expected or hmac.compare_digest(proof, expected)

    def direct_address(self, function: str) -> Address | None:
        """The function's own address, or None if its calls are to go through the gateway."""
        return self._addresses.direct(function, time.monotonic())

    def send_plain(self, calls: Iterable[Call]) -> None:
        """Begin the calls of functions to whose own addresses there are idle connections, all together.

        The others have no connection afterwards. Of those that have one, `is_plain` says whether the whole
        request was sent.
        """
        now = time.monotonic()
        begun: list[tuple[Call, Connection, list[bytes | memoryview]]] = []
        for call in calls:
            address = self._addresses.direct(call.function, now)
            connection = self._pool.idle(address) if address is not None else None
            if address is not None and connection is not None:
                call.start(address, True, now)
                call.connection = connection
                # It is the process that has reported its limit: a new one has no connection yet.
                call.body = call.invocation.encode(with_limit=not call.holds_limit)
                proof = self.caller_proof(call.function)
                begun.append((call, connection, request("/", address, CONTENT_TYPE, call.body, proof)))
        left = plain_calls.send([(connection.fileno(), *parts) for _, connection, parts in begun])
        for (call, connection, parts), nbytes in zip(begun, left, strict=True):
            if nbytes < 0:  # Its peer has closed it while it was idle.
                call.hang_up()
            else:
                connection.began(last_bytes(parts, nbytes), max_answer_bytes(call.invocation))
                call.is_plain = nbytes == 0

    def take(self, address: Address, direct: bool) -> Connection:
        """A connection for one call, directly to a function or to a gateway. Raises `ConnectionLost`."""
        return self._pool.take(address, senses_loss=direct)

    def release(self, connection: Connection) -> None:
        """Keep a connection for later calls, after its response was read."""
        self._pool.release(connection)

    def learn(self, function: str, announced: str) -> None:
        """Note a function's own address, which came with an answer through the gateway."""
        address = direct_address(announced, self._gateway_of(function), self._networks)
        if address is None and self._learned.get(function) != announced:
            _logger.warning(
                "function %s is called through its gateway: its address %r is not in function_networks",
                function,
                announced[:80],
            )
        self._addresses.learn(function, address)
        self._learned[function] = announced
        # A function that was scaled to zero has a new address when it wakes; nothing uses the old one again.
        in_use = self._addresses.known() | set(map(self._gateway_of, self._learned))
        self._pool.keep_only(in_use)
        self._prefetches.keep_only(in_use)

    def confirm(self, address: Address) -> None:
        """Note that a direct call was answered."""
        self._addresses.confirm(address)

    def avoid(self, address: Address, silent: bool = False) -> None:
        """Note that a direct call failed, so that the next ones go through the gateway.

        `silent` is for an address whose function did not say that it is alive.
        """
        self._addresses.avoid(address, time.monotonic(), silent)

    def known(self) -> set[Address]:
        """The functions' own addresses."""
        return self._addresses.known()

    def prefetch(self, function: str, invocation: Invocation) -> None:
        """Send a prefetch if the function's own address is known. Waits for nothing, ignores failures."""
        address = self.direct_address(function)
        if address is not None:
            proof = self.caller_proof(function)
            self._prefetches.send(address, invocation, max_answer_bytes(invocation), proof)

    def close(self) -> None:
        """Close all connections that are not in use."""
        self._pool.close()
        self._prefetches.close()


def _no_proof(function: str) -> str:
    return ""


def _proof_of(secret: FunctionSecret | None) -> Callable[[str], bytes]:
    return lambda function: secret.function_proof(function).encode() if secret else b""

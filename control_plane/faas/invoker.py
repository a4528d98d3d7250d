"""Invokes expert functions: straight at their own address when that is known, else through the gateway.

Functions are stateless, so an invocation is safe to repeat: whatever a function, its host or the way to
it can do wrong is answered by another attempt through the gateway, which starts a function that is gone.
Only an answer that says that the request itself is wrong, or the deadline, ends the attempts.
"""

import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from control_plane.errors import (
    FunctionNotFound,
    FunctionUnavailable,
    GatewayError,
    InvocationTimeout,
    ProtocolError,
)
from control_plane.faas.addresses import AddressBook
from control_plane.faas.connection import Address, Answer, Connection, ConnectionLost
from control_plane.faas.invocation import ExpertUsage
from control_plane.faas.statistics import FunctionStatistics
from functions.contract.messages import Invocation, InvocationResult
from functions.contract.process import UNKNOWN_EXPERT
from functions.contract.safetensors_codec import CONTENT_TYPE, WireError

PREFETCH_SECONDS = 0.1
"""Advice that takes longer is not worth it."""
_RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class InvocationPolicy:
    """How long an invocation may take, and how its attempts are spaced. Seconds."""

    attempt_timeout: float = 30.0
    deadline: float = 60.0
    first_backoff: float = 0.05
    max_backoff: float = 2.0
    connect_timeout: float = 3.0
    gateway_interval: float = 10.0
    """As in `AddressBook`."""

    def backoff(self, attempt: int) -> float:
        """The wait before attempt number `attempt` (from 1): doubling, with jitter so that callers spread."""
        return min(self.max_backoff, self.first_backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)


@dataclass
class _Call:
    """One invocation on its way."""

    function: str
    invocation: Invocation
    body: list[bytes | memoryview]
    connection: Connection | None = None
    direct: bool = False
    failure: GatewayError | None = None
    result: InvocationResult | None = None


@dataclass
class Invoker:
    """Holds the connections to gateways and to awake functions. Used by one thread, the engine's."""

    gateway_of: Callable[[str], Address]
    """Tells behind which gateway a function is now."""
    policy: InvocationPolicy = field(default_factory=InvocationPolicy)
    statistics: defaultdict[str, FunctionStatistics] = field(init=False)
    usage: ExpertUsage = field(default_factory=ExpertUsage)
    _addresses: AddressBook = field(init=False)
    _idle: dict[Address, list[Connection]] = field(default_factory=dict)
    _in_flight: Sequence[_Call] = ()
    _prefetch_connections: dict[Address, Connection] = field(default_factory=dict)
    """Connections of their own for advice: the answers may come while others are waited for."""
    _aborted: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.statistics = defaultdict(FunctionStatistics)
        self._addresses = AddressBook(self.policy.gateway_interval)

    def begin(self, invocations: Mapping[str, Invocation]) -> Callable[[], dict[str, InvocationResult]]:
        """Send one invocation to each function; the returned call waits for all answers.

        What the caller does in between costs no time: the functions compute meanwhile. The wait raises
        `FunctionNotFound`, `FunctionUnavailable`, `InvocationTimeout` or `ProtocolError`.
        """
        calls = [_Call(name, invocation, invocation.encode()) for name, invocation in invocations.items()]
        deadline = time.monotonic() + self.policy.deadline
        self._hang_up()
        self._in_flight = calls
        attempt_deadline = self._attempt_deadline(deadline)
        self._send_all(calls, attempt_deadline)
        return lambda: self._finish(calls, attempt_deadline, deadline)

    def prefetch(self, invocations: Mapping[str, Invocation]) -> None:
        """Tell functions that are awake what they can expect, by invocations without rows.

        Waits for no answer, and forgets whatever goes wrong: it is only advice.
        """
        for function, invocation in invocations.items():
            address = self._addresses.awake(function)
            if address is not None:
                self._prefetch(address, invocation)

    def address_of(self, function: str) -> Address | None:
        """Where the function was when it last answered, if that can be reached from here."""
        return self._addresses.awake(function)

    def abort(self) -> None:
        """From another thread: make the wait in progress, and every later one, raise a `GatewayError`."""
        self._aborted.set()
        for call in list(self._in_flight):
            if connection := call.connection:
                connection.abort()

    def close(self) -> None:
        """Hang up everywhere."""
        self._hang_up()
        for connection in chain(*self._idle.values(), self._prefetch_connections.values()):
            connection.close()
        self._idle.clear()
        self._prefetch_connections.clear()

    def _prefetch(self, address: Address, invocation: Invocation) -> None:
        deadline = time.monotonic() + PREFETCH_SECONDS
        connection = self._prefetch_connections.pop(address, None)
        try:
            if connection is None:
                connection = Connection(address, deadline)
            elif not connection.readable:
                # It has not even taken in what it was told last.
                self._prefetch_connections[address] = connection
                return
            else:
                connection.receive(deadline)
            connection.send("/", CONTENT_TYPE, invocation.encode(), deadline)
            self._prefetch_connections[address] = connection
        except (ConnectionLost, TimeoutError):
            if connection is not None:
                connection.close()

    def _finish(
        self, calls: list[_Call], attempt_deadline: float, deadline: float
    ) -> dict[str, InvocationResult]:
        try:
            attempt = 0
            while pending := self._receive_all(calls, attempt_deadline):
                attempt += 1
                self._wait_before_retry(attempt, pending, deadline)
                # One for all: functions that hang do so at the same time, not one after the other.
                attempt_deadline = self._attempt_deadline(deadline)
                self._send_all(pending, attempt_deadline)
            return {call.function: call.result for call in calls if call.result}
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        """Close what is in flight after an error: answers that nobody reads are on their way there."""
        for call in self._in_flight:
            if call.connection is not None:
                call.connection.close()
        self._in_flight = ()

    def _wait_before_retry(self, attempt: int, pending: Sequence[_Call], deadline: float) -> None:
        # A function that is not where it was is the gateway's to find: ask at once.
        wait = 0.0 if all(call.direct for call in pending) else self.policy.backoff(attempt)
        if time.monotonic() + wait >= deadline or self._aborted.wait(wait):
            raise pending[0].failure or FunctionUnavailable(f"function {pending[0].function}: aborted")
        for call in pending:
            self.statistics[call.function].retries += 1

    def _send_all(self, calls: Iterable[_Call], deadline: float) -> None:
        for call in calls:
            call.failure = None
            try:
                self._send(call, deadline)
            except (ConnectionLost, TimeoutError) as error:
                self._failed(call, FunctionUnavailable(f"function {call.function}: {error}"))

    def _send(self, call: _Call, deadline: float) -> None:
        own = self._addresses.direct(call.function, time.monotonic())
        call.direct = own is not None
        if self._aborted.is_set():
            raise ConnectionLost("aborted")
        call.connection = self._connection(own or self.gateway_of(call.function), deadline)
        # Only now: `abort` ends the waits of the connections that it sees, and of none that come later.
        if self._aborted.is_set():
            raise ConnectionLost("aborted")
        target = "/" if call.direct else f"/function/{call.function}"
        call.connection.send(target, CONTENT_TYPE, call.body, deadline)

    def _receive_all(self, calls: Sequence[_Call], deadline: float) -> list[_Call]:
        """Take the answers of all calls that were sent; returns the calls to be sent again."""
        for call in calls:
            if call.connection is None or call.result is not None:
                continue
            try:
                answer = call.connection.receive(deadline)
                self._accept(call, answer)
            except TimeoutError:
                self._failed(call, InvocationTimeout(f"function {call.function} did not answer in time"))
            except ConnectionLost as error:
                self._failed(call, FunctionUnavailable(f"function {call.function}: {error}"))
        return [call for call in calls if call.result is None]

    def _accept(self, call: _Call, answer: Answer) -> None:
        """Take a good answer; note a failure that another attempt may mend; raise one that none will."""
        if answer.status != 200:
            self._refused(call, answer)
            return
        try:
            result = InvocationResult.decode(answer.body)
            expected = call.invocation.hidden_states
            if result.output.shape != expected.shape or result.output.dtype != expected.dtype:
                raise WireError(f"output is {result.output.dtype} {list(result.output.shape)}")
            address = Address.parse(result.address)
        except ValueError as error:
            self._failed(call, ProtocolError(f"function {call.function} answered garbage: {error}"))
            return
        call.result = result
        if not call.direct:
            self._learn(call.function, address)
        elif call.connection:
            self._addresses.confirm(call.connection.address)
        sent = sum(len(part) for part in call.body)
        counted = self.statistics[call.function]
        self.usage += counted.record(call.invocation.layer, sent, len(answer.body), result)
        self._release(call)

    def _learn(self, function: str, address: Address) -> None:
        # Behind a gateway elsewhere, 127.0.0.1 is not this machine.
        if self.gateway_of(function).is_loopback or not address.is_loopback:
            self._addresses.learn(function, address, time.monotonic())
        self._close_idle()

    def _refused(self, call: _Call, answer: Answer) -> None:
        code, message = _error_of(answer.body)
        text = f"function {call.function} answered {answer.status}: {message}"
        # A stale address may belong to another function by now, whose refusal says nothing about ours.
        if call.direct or answer.status in _RETRYABLE_STATUS:
            self._failed(call, FunctionUnavailable(text))
        elif answer.status == 404 and code != UNKNOWN_EXPERT:
            raise FunctionNotFound(
                f"the gateway at {self.gateway_of(call.function)} has no function {call.function}: "
                "deploy it first"
            )
        else:
            raise ProtocolError(text)

    def _failed(self, call: _Call, failure: GatewayError) -> None:
        """Note the failure, and go through the gateway next time."""
        call.failure = failure
        if call.direct:
            self._addresses.forget(call.function, time.monotonic())
        if call.connection is not None:
            call.connection.close()
            call.connection = None

    def _connection(self, address: Address, deadline: float) -> Connection:
        idle = self._idle.get(address, [])
        while idle:
            connection = idle.pop()
            if not connection.readable:
                return connection
            connection.close()
        return Connection(address, min(deadline, time.monotonic() + self.policy.connect_timeout))

    def _close_idle(self) -> None:
        """Hang up where functions have been: a function that slept is somewhere else when it wakes."""
        awake = self._addresses.known() | {self.gateway_of(function) for function in self.statistics}
        for address in self._idle.keys() - awake:
            for connection in self._idle.pop(address):
                connection.close()
        for address in self._prefetch_connections.keys() - awake:
            self._prefetch_connections.pop(address).close()

    def _release(self, call: _Call) -> None:
        if call.connection is not None and call.connection.reusable:
            self._idle.setdefault(call.connection.address, []).append(call.connection)
        elif call.connection is not None:
            call.connection.close()
        call.connection = None

    def _attempt_deadline(self, deadline: float) -> float:
        return min(deadline, time.monotonic() + self.policy.attempt_timeout)


def _error_of(body: bytearray) -> tuple[str, str]:
    """Code and message of the contract's JSON error, or of whatever stands in its place."""
    try:
        error = json.loads(body)["error"]
        return str(error["code"]), str(error["message"])
    except (KeyError, RecursionError, TypeError, ValueError):
        return "", body[:200].decode(errors="replace").strip()

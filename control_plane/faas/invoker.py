"""Invokes expert functions: directly at their own address once it is known, otherwise through the gateway.

Functions are stateless, so an invocation can be repeated safely. Most failures of a function, its host or
the network are retried through the gateway, which starts a function that is gone. Attempts end at the
deadline, or with an answer that says that the request itself is wrong.
"""

import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from control_plane.errors import (
    FunctionNotFound,
    FunctionUnavailable,
    GatewayError,
    InvocationTimeout,
    ProtocolError,
)
from control_plane.faas.connection import Address, Connection, ConnectionLost, HttpResponse
from control_plane.faas.function_connections import FunctionConnections
from control_plane.faas.invocation import ExpertUsage
from control_plane.faas.statistics import FunctionStatistics
from functions.contract.messages import Invocation, InvocationResult
from functions.contract.process import FINAL_CODES
from functions.contract.safetensors_codec import CONTENT_TYPE, WireError

_RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class InvocationPolicy:
    """How long an invocation may take, and how far apart its attempts are. All values are seconds."""

    attempt_timeout: float = 30.0
    deadline: float = 60.0
    """The limit for all attempts together."""
    first_backoff: float = 0.05
    max_backoff: float = 2.0
    connect_timeout: float = 3.0
    gateway_interval: float = 10.0
    """See `AddressBook.gateway_interval`."""

    def backoff(self, attempt: int) -> float:
        """The wait before retry number `attempt` (from 1): doubles each time, with random jitter."""
        return min(self.max_backoff, self.first_backoff * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)


@dataclass(slots=True)
class _Call:
    """One invocation in flight."""

    function: str
    invocation: Invocation
    body: list[bytes | memoryview]
    connection: Connection | None = None
    direct: bool = False
    """Whether the current attempt goes to the function's own address."""
    failure: GatewayError | None = None
    result: InvocationResult | None = None


@dataclass(slots=True)
class _PendingCalls:
    """The `PendingInvocations` of an `Invoker`."""

    invoker: "Invoker"
    calls: Sequence[_Call]
    attempt_deadline: float
    deadline: float

    def wait(self) -> dict[str, InvocationResult]:
        return self.invoker._finish(self.calls, self.attempt_deadline, self.deadline)


@dataclass
class Invoker:
    """The `ExpertInvoker` for OpenFaaS: sends invocations, repeats failed ones, and counts the answers.

    The engine's thread alone uses it and writes its statistics; other threads may read those and `abort`.
    """

    gateway_of: Callable[[str], Address]
    """Returns the address of the gateway that currently has a function."""
    policy: InvocationPolicy = field(default_factory=InvocationPolicy)
    statistics: defaultdict[str, FunctionStatistics] = field(init=False)
    usage: ExpertUsage = field(default_factory=ExpertUsage)
    _connections: FunctionConnections = field(init=False)
    _in_flight: Sequence[_Call] = ()
    _aborted: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.statistics = defaultdict(FunctionStatistics)
        self._connections = FunctionConnections(
            self.gateway_of, self.policy.gateway_interval, self.policy.connect_timeout
        )

    def begin(self, invocations: Mapping[str, Invocation]) -> _PendingCalls:
        """Send one invocation to each function. The functions compute while the caller does other work.

        Waiting raises `FunctionNotFound`, `FunctionUnavailable`, `InvocationTimeout` or `ProtocolError`.
        """
        calls = [_Call(name, invocation, invocation.encode()) for name, invocation in invocations.items()]
        deadline = time.monotonic() + self.policy.deadline
        # The caller may have dropped its last pending invocations without waiting for them.
        self._hang_up()
        self._in_flight = calls
        attempt_deadline = self._attempt_deadline(deadline)
        self._send_all(calls, attempt_deadline)
        return _PendingCalls(self, calls, attempt_deadline, deadline)

    def prefetch(self, invocations: Mapping[str, Invocation]) -> None:
        """Send invocations without rows to functions that run. Waits for no answer and ignores failures."""
        for function, invocation in invocations.items():
            self._connections.prefetch(function, invocation)

    def address_of(self, function: str) -> Address | None:
        """The function's own address at its last answer, if it can be reached from this machine."""
        return self._connections.last_address(function)

    def abort(self) -> None:
        """From another thread: make the wait in progress, and every later one, raise a `GatewayError`."""
        self._aborted.set()
        for call in list(self._in_flight):
            if connection := call.connection:
                connection.abort()

    def close(self) -> None:
        """Close all connections."""
        self._hang_up()
        self._connections.close()

    def _finish(
        self, calls: Sequence[_Call], attempt_deadline: float, deadline: float
    ) -> dict[str, InvocationResult]:
        """Read all answers, repeating what failed until the deadline."""
        try:
            attempt = 0
            while pending := self._receive_all(calls, attempt_deadline):
                attempt += 1
                self._wait_before_retry(attempt, pending, deadline)
                # One deadline for all: functions that hang use up their time together, not in turn.
                attempt_deadline = self._attempt_deadline(deadline)
                self._send_all(pending, attempt_deadline)
            return {call.function: call.result for call in calls if call.result}
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        """Close the connections of calls in flight that nobody waits for any more.

        Their answers are still to come, so that the connections cannot be used for other calls. After a
        success there are none: `_accept` has returned each connection to the pool.
        """
        for call in self._in_flight:
            if call.connection is not None:
                call.connection.close()
        self._in_flight = ()

    def _wait_before_retry(self, attempt: int, pending: Sequence[_Call], deadline: float) -> None:
        # A direct call that failed is repeated through the gateway at once: the gateway is not to blame.
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
        own = self._connections.direct_address(call.function)
        call.direct = own is not None
        # The first check avoids a needless connection attempt, which could take seconds.
        if self._aborted.is_set():
            raise ConnectionLost("aborted")
        call.connection = self._connections.take(own or self.gateway_of(call.function), deadline)
        # The second check is for an abort since the first: `abort` sets the event, then shuts down the
        # connections that it finds. It either found this one, or has set the event before this line.
        if self._aborted.is_set():
            raise ConnectionLost("aborted")
        target = "/" if call.direct else f"/function/{call.function}"
        call.connection.send(target, CONTENT_TYPE, call.body, deadline)

    def _receive_all(self, calls: Sequence[_Call], deadline: float) -> list[_Call]:
        """Read the answers of all calls that were sent; returns the calls to repeat."""
        for call in calls:
            if call.connection is None or call.result is not None:
                continue
            try:
                self._accept(call, call.connection, call.connection.receive(deadline))
            except TimeoutError:
                self._failed(call, InvocationTimeout(f"function {call.function} did not answer in time"))
            except ConnectionLost as error:
                self._failed(call, FunctionUnavailable(f"function {call.function}: {error}"))
        return [call for call in calls if call.result is None]

    def _accept(self, call: _Call, connection: Connection, response: HttpResponse) -> None:
        """Take a good answer, note a failure that a retry may mend, or raise one that it cannot mend."""
        if response.status != 200:
            self._refused(call, response)
            return
        try:
            result = InvocationResult.decode(response.body)
            expected = call.invocation.hidden_states
            if result.output.shape != expected.shape or result.output.dtype != expected.dtype:
                raise WireError(f"output is {result.output.dtype} {list(result.output.shape)}")
            address = Address.parse(result.address)
        except ValueError as error:
            self._failed(call, ProtocolError(f"function {call.function} answered garbage: {error}"))
            return
        call.result = result
        if call.direct:
            self._connections.confirm(connection.address)
        else:
            self._connections.learn(call.function, address)
        sent = sum(len(part) for part in call.body)
        counted = self.statistics[call.function]
        self.usage += counted.record(call.invocation.layer, sent, len(response.body), result)
        call.connection = None
        self._connections.release(connection)

    def _refused(self, call: _Call, response: HttpResponse) -> None:
        code, message = _error_of(response.body)
        text = f"function {call.function} answered {response.status}: {message}"
        # Another function may have taken over an old address; its refusal says nothing about this one.
        if call.direct or (response.status in _RETRYABLE_STATUS and code not in FINAL_CODES):
            self._failed(call, FunctionUnavailable(text))
        elif response.status == 404 and code not in FINAL_CODES:
            raise FunctionNotFound(
                f"the gateway at {self.gateway_of(call.function)} has no function {call.function}: "
                "deploy it first"
            )
        else:
            raise ProtocolError(text)

    def _failed(self, call: _Call, failure: GatewayError) -> None:
        """Note the failure of an attempt, so that the next one goes through the gateway."""
        call.failure = failure
        if call.direct:
            self._connections.forget(call.function)
        if call.connection is not None:
            call.connection.close()
            call.connection = None

    def _attempt_deadline(self, deadline: float) -> float:
        return min(deadline, time.monotonic() + self.policy.attempt_timeout)


def _error_of(body: bytearray) -> tuple[str, str]:
    """Code and message of the contract's JSON error; for any other body, no code and its first bytes."""
    try:
        error = json.loads(body)["error"]
        return str(error["code"]), str(error["message"])
    except (KeyError, RecursionError, TypeError, ValueError):
        return "", body[:200].decode(errors="replace").strip()

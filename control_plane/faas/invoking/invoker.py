"""Invokes expert functions: directly at their own address once it is known, otherwise through the gateway.

Functions are stateless, so an invocation can be repeated safely. Most failures of a function, its host or
the network are retried through the gateway, which starts a function that is gone. Attempts end at the
deadline, or with an answer that says that the request itself is wrong.
"""

import logging
import select
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from control_plane.faas.addresses import Networks
from control_plane.faas.call import Call, InvocationPolicy, error_of
from control_plane.faas.connection import Address, ConnectionLost
from control_plane.faas.invocation import ExpertUsage
from control_plane.faas.invoking.call_outcomes import CallOutcomes
from control_plane.faas.invoking.function_connections import FunctionConnections
from control_plane.faas.statistics import FunctionStatistics
from control_plane.faas.wire import plain_calls
from control_plane.faas.wire.health import healthy
from control_plane.faas.wire.results import max_answer_bytes, output_for, plain_result
from functions.contract.messages import Invocation, InvocationResult
from functions.contract.safetensors_codec import CONTENT_TYPE
from functions.contract.secret import FunctionSecret

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _PendingCalls:
    """The `PendingInvocations` of an `Invoker`."""

    invoker: "Invoker"
    calls: Sequence[Call]

    def wait(self) -> dict[str, InvocationResult]:
        return self.invoker._finish(self.calls)


@dataclass
class Invoker:
    """The `ExpertInvoker` for OpenFaaS: sends invocations, repeats failed ones, and counts the answers.

    The engine's thread alone uses it and writes its statistics; other threads may read those and `abort`.
    """

    gateway_of: Callable[[str], Address]
    """Returns the address of the gateway that currently has a function."""
    is_absent: Callable[[str], bool]
    """Whether the gateways' lists say that there is no such function: see `CallOutcomes`."""
    policy: InvocationPolicy = field(default_factory=InvocationPolicy)
    networks: Networks = ()
    """Where functions may be called directly; on loopback they may, if their gateway is there, too."""
    secret: FunctionSecret | None = None
    """What functions share with the control plane; only those that prove to have it are believed."""
    _connections: FunctionConnections = field(init=False)
    _outcomes: CallOutcomes = field(init=False)
    _in_flight: Sequence[Call] = ()
    _aborted: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._connections = FunctionConnections(self.gateway_of, self.networks, self.secret)
        self._outcomes = CallOutcomes(self._connections, self.is_absent)

    @property
    def statistics(self) -> Mapping[str, FunctionStatistics]:
        """What each function has answered."""
        return self._outcomes.statistics

    @property
    def usage(self) -> ExpertUsage:
        """The cost of all answered invocations."""
        return self._outcomes.usage.total

    def begin(self, invocations: Mapping[str, Invocation]) -> _PendingCalls:
        """Send one invocation to each function. The functions compute while the caller does other work.

        Waiting raises `FunctionNotFound`, `FunctionUnavailable`, `InvocationTimeout` or `ProtocolError`.
        """
        calls = [self._new_call(name, invocation) for name, invocation in invocations.items()]
        # The caller may have dropped its last pending invocations without waiting for them.
        self._hang_up()
        self._in_flight = calls
        if plain_calls.are_compiled():
            self._connections.send_plain(calls)
        for call in calls:
            if call.connection is None:
                self._send(call)
        # An abort that came before the connections were known has not woken them.
        while not self._aborted.is_set() and (sending := [call for call in calls if call.is_sending]):
            self._wait(sending)
        return _PendingCalls(self, calls)

    def prefetch(self, invocations: Mapping[str, Invocation]) -> None:
        """Send invocations without rows to functions that run. Waits for nothing and ignores failures."""
        for function, invocation in invocations.items():
            self._connections.prefetch(function, invocation)

    def address_of(self, function: str) -> Address | None:
        """The function's own address, if it is called there and not through its gateway."""
        return self._connections.direct_address(function)

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

    def _finish(self, calls: Sequence[Call]) -> dict[str, InvocationResult]:
        """Read all answers, repeating what failed until the deadline."""
        now = time.monotonic()
        for call in calls:
            call.listen(now)
        try:
            if plain := [call for call in calls if call.is_plain]:
                self._receive_plain(plain)
            while pending := [call for call in calls if call.result is None]:
                now = time.monotonic()
                hopeful = self._hopeful(pending, now)
                failed = [call for call in hopeful if call.connection is None and call.due <= now]
                for call in failed:
                    self._outcomes.statistics[call.function].retries += 1
                    self._send(call)
                # One that has failed again at once may be the last for which there is time.
                if not failed:
                    self._wait(hopeful)
            return {call.function: call.result for call in calls if call.result}
        finally:
            self._hang_up()

    def _receive_plain(self, calls: Sequence[Call]) -> None:
        """Take the answers that are plain, until one is not, or it is time to look after a call."""
        if self._aborted.is_set():
            return
        proof_of = self._connections.function_proof
        asked = [
            (connection.fileno(), proof_of(call.function), output_for(call.invocation))
            for call in calls
            if (connection := call.connection) is not None
        ]
        due = min(call.due for call in calls)
        answers = plain_calls.receive(due - time.monotonic(), asked)
        now = time.monotonic()
        for call, (_, _, output), answer in zip(calls, asked, answers, strict=True):
            connection = call.connection
            assert connection is not None
            if isinstance(answer, bytes):
                connection.received(answer)
            else:
                connection.answered()
                result = plain_result(call.invocation, answer, output, now - call.sent_at)
                self._outcomes.answered(call, connection, result, answer.body_nbytes)
        for call in calls:
            if call.result is None:
                self._move(call)

    def _hang_up(self) -> None:
        """Close the connections of calls in flight that nobody waits for any more."""
        for call in self._in_flight:
            call.hang_up()
        self._in_flight = ()

    def _hopeful(self, pending: Sequence[Call], now: float) -> Sequence[Call]:
        """The calls that may still be answered. Raises an error if there are none, or the wait was aborted.

        Since the error waits for these, it names all functions that have failed, and none that is only slow.
        """
        if self._aborted.is_set():
            raise error_of(pending, now, aborted=True)
        if hopeful := [call for call in pending if not call.is_lost(now)]:
            return hopeful
        self._outcomes.broken |= {call.function for call in pending}
        error = error_of(pending, now, aborted=False)
        # Clients may read the error, and only the log tells where a function or a gateway is.
        _logger.warning("%s (called at %s)", error, pending[0].address)
        raise error

    def _seconds_for(self, function: str) -> float:
        return self.policy.broken_deadline if function in self._outcomes.broken else self.policy.deadline

    def _new_call(self, function: str, invocation: Invocation) -> Call:
        now = time.monotonic()
        counted, limit = self.statistics.get(function), invocation.resident_limit
        holds_limit = counted is not None and counted.residency.last.limit_bytes == limit
        return Call(function, invocation, holds_limit, self.policy, now, now + self._seconds_for(function))

    def _send(self, call: Call) -> None:
        call.body = call.invocation.encode()
        own = self._connections.direct_address(call.function)
        call.start(own or self.gateway_of(call.function), own is not None, time.monotonic())
        assert call.address is not None
        try:
            # The first check avoids a needless connection attempt.
            self._check_abort()
            call.connection = self._connections.take(call.address, call.direct)
            # The second check is for an abort since the first: `abort` sets the event, then shuts down the
            # connections that it finds. It either found this one, or has set the event before this line.
            self._check_abort()
            target = "/" if call.direct else f"/function/{call.function}"
            proof = self._connections.caller_proof(call.function)
            call.connection.send(target, CONTENT_TYPE, call.body, max_answer_bytes(call.invocation), proof)
        except ConnectionLost as error:
            self._outcomes.lost(call, error, died=False)

    def _check_abort(self) -> None:
        if self._aborted.is_set():
            raise ConnectionLost("aborted")

    def _wait(self, calls: Sequence[Call]) -> None:
        """Wait for answers until one call is sent, fails or is silent for too long, or all are answered."""
        in_flight = {call.connection.fileno(): call for call in calls if call.connection is not None}
        due = min(call.due for call in calls)
        if not in_flight:
            self._aborted.wait(max(due - time.monotonic(), 0))
            return
        poll = select.poll()
        for number, call in in_flight.items():
            poll.register(number, select.POLLOUT if call.is_sending else select.POLLIN)
        while in_flight:
            events = poll.poll(max(due - time.monotonic(), 0) * 1000)
            for number, _ in events:
                if not self._move(in_flight[number]):
                    return
                if in_flight[number].result is not None:
                    poll.unregister(number)
                    del in_flight[number]
            now = time.monotonic()
            if now >= due:
                self._look_after([call for call in in_flight.values() if call.due <= now])
                return

    def _move(self, call: Call) -> bool:
        """Send or read more of the call; returns whether to wait for the same as before."""
        connection = call.connection
        assert connection is not None
        number = connection.fileno()
        try:
            if connection.sending:
                connection.push()
                # It may have turned to another of the host's addresses.
                return connection.sending and connection.fileno() == number
            if response := connection.read():
                self._outcomes.accept(call, connection, response)
        except ConnectionLost as error:
            self._outcomes.lost(call, error, died=call.direct and not connection.sending)
        return call.connection is connection or call.result is not None

    def _look_after(self, silent: Iterable[Call]) -> None:
        """Give up the attempts of functions that hang, and wait on for those that are only slow.

        All functions are asked together, also those that later steps need: those that hang or have gone
        together are found together.
        """
        now = time.monotonic()
        silent = [call for call in silent if not call.put_off(now)]
        asked = {call.address for call in silent if call.address and not call.is_over(now)}
        others = self._connections.known() - {call.address for call in self._in_flight} if asked else set()
        alive = healthy(asked | others, self.policy.health_timeout, self.policy.loss_patience)
        for address in others - alive:
            self._connections.avoid(address, silent=True)
        for call in silent:
            now = time.monotonic()
            # An answer may have arrived while the functions were asked.
            arrived = call.connection is not None and call.connection.readable
            if not call.is_over(now) and (arrived or call.address in alive):
                call.wait_on(now)
            else:
                self._outcomes.avoid(call, silent=True)
                call.time_out(now)

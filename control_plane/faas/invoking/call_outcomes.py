"""What comes of attempts: answers that count, and failures that a retry may mend or that end the call."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from control_plane.errors import FunctionUnavailable, GatewayError, ProtocolError
from control_plane.faas.call import Call
from control_plane.faas.connection import Connection, ConnectionLost
from control_plane.faas.invoking.function_connections import FunctionConnections
from control_plane.faas.statistics import FunctionStatistics, UsageCounter
from control_plane.faas.wire.refusal import Refusal
from control_plane.faas.wire.response_reader import HttpResponse
from control_plane.faas.wire.results import max_answer_bytes, read_result
from functions.contract.messages import InvocationResult


@dataclass
class CallOutcomes:
    """Ends attempts, notes which addresses are good, and counts the answers. One thread uses it."""

    connections: FunctionConnections
    is_absent: Callable[[str], bool]
    """Whether the gateways' lists say that there is no such function. A gateway's 404 alone does not."""
    statistics: defaultdict[str, FunctionStatistics] = field(
        default_factory=lambda: defaultdict(FunctionStatistics)
    )
    usage: UsageCounter = field(default_factory=UsageCounter)
    broken: set[str] = field(default_factory=set)
    """Functions that have failed for a whole deadline, and have not answered since."""

    def accept(self, call: Call, connection: Connection, response: HttpResponse) -> None:
        """Take a good answer, note a failure that a retry may mend, or raise one that it cannot mend."""
        if response.status != 200:
            self._refused(call, response)
            return
        if not self.connections.is_proven(call.function, response.proof):
            text = f"function {call.function} does not prove that it has the control plane's secret"
            self._not_trusted(call, ProtocolError(f"{text}: deploy it with that"))
            return
        try:
            if response.truncated:
                raise ValueError(f"more than {max_answer_bytes(call.invocation)} bytes")
            result = read_result(call.invocation, response.body, time.monotonic() - call.sent_at)
        except ValueError as error:
            self._failed(call, ProtocolError(f"function {call.function} answered garbage: {error}"))
            return
        self.answered(call, connection, result, len(response.body))

    def answered(self, call: Call, connection: Connection, result: InvocationResult, received: int) -> None:
        """Count a good answer, whose body has `received` bytes."""
        call.result = result
        self.broken.discard(call.function)
        if call.direct:
            self.connections.confirm(connection.address)
        else:
            self.connections.learn(call.function, result.address)
        sent = sum(map(len, call.body))
        counted = self.statistics[call.function]
        cold_start = counted.record(call.invocation.layer, sent, received, result)
        self.usage.add(result, sent + received, cold_start)
        call.connection = None
        self.connections.release(connection)

    def _refused(self, call: Call, response: HttpResponse) -> None:
        """Note an error answer that a retry may mend, or raise the error that it stands for."""
        refusal = Refusal.read(call.function, response, call.direct)
        if refusal.is_final or (refusal.not_found and self.is_absent(call.function)):
            self._give_up(call, refusal.error)
        self._failed(call, refusal.error, refusal.is_death)

    def _not_trusted(self, call: Call, failure: ProtocolError) -> None:
        """A function and the control plane do not have the same secret; another one may have its address."""
        if not call.direct:
            self._give_up(call, failure)
        self._failed(call, failure)

    @staticmethod
    def _give_up(call: Call, failure: GatewayError) -> NoReturn:
        failure.functions = frozenset({call.function})
        raise failure

    def lost(self, call: Call, error: ConnectionLost, died: bool) -> None:
        """The attempt's connection has failed; `died` if that was the function's doing."""
        peer = "function" if call.direct else "the gateway of function"
        self._failed(call, FunctionUnavailable(f"{peer} {call.function} {error}"), died)

    def _failed(self, call: Call, failure: GatewayError, died: bool = False) -> None:
        """End an attempt, so that the next one goes through the gateway."""
        self.avoid(call)
        call.fail(failure, time.monotonic(), died)

    def avoid(self, call: Call, silent: bool = False) -> None:
        """Note that the function's own address failed; `silent` as in `FunctionConnections.avoid`."""
        if call.direct and call.address is not None:
            self.connections.avoid(call.address, silent)

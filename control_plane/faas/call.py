"""One invocation and its attempts: when to ask, to give up, to repeat. Times are of a monotonic clock."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from control_plane.errors import FunctionUnavailable, GatewayError, InvocationTimeout
from control_plane.faas.connection import Address, Connection
from functions.contract.messages import Invocation, InvocationResult


@dataclass(frozen=True)
class InvocationPolicy:
    """How long an invocation may take, and how far apart its attempts are. All values are seconds."""

    attempt_timeout: float = 30.0
    deadline: float = 60.0
    """The limit for all attempts together."""
    broken_deadline: float = 5.0
    """The same limit for a function that has failed for a whole `deadline`, until it answers. Without it, a
    broken function would delay each step for a minute."""
    first_gateway_timeout: float = 5.0
    """The limit of the first attempt through the gateway; each further one has twice as long.

    A gateway that hangs on one connection may answer on the next.
    """
    first_backoff: float = 0.05
    max_backoff: float = 2.0
    loss_patience: float = 0.3
    """When to see whether the network has lost a direct call: a kernel confirms in milliseconds what it
    receives, however busy its processes are."""
    first_patience: float = 1.0
    """How long a function may be silent before it is asked for its health. Then the time doubles."""
    max_patience: float = 4.0
    health_timeout: float = 1.0

    def attempt(self, direct: bool, number: int) -> float:
        """The limit of an attempt; `number` counts those through the gateway, from 0."""
        if direct:
            return self.attempt_timeout
        return min(self.attempt_timeout, self.first_gateway_timeout * 2.0**number)

    def backoff(self, attempt: int) -> float:
        """The wait before retry number `attempt` (from 1): doubles each time, with random jitter."""
        jitter = random.SystemRandom().uniform(0.5, 1.0)
        return min(self.max_backoff, self.first_backoff * 2.0 ** (attempt - 1)) * jitter

    def patience(self, questions: int) -> float:
        """The time until a silent function is asked for its health, after so many questions."""
        return min(self.max_patience, self.first_patience * 2.0**questions)


@dataclass(slots=True)
class Call:
    """One invocation, and its current attempt."""

    function: str
    invocation: Invocation
    holds_limit: bool
    """Whether the function's process has reported the invocation's limit of weights as its own."""
    policy: InvocationPolicy
    began: float
    deadline: float
    """The end of all attempts."""
    body: list[bytes | memoryview] = field(default_factory=list)
    """What the current attempt sends."""
    result: InvocationResult | None = None
    failure: GatewayError | None = None
    """The failure of the last attempt that has ended."""
    connection: Connection | None = None
    address: Address | None = None
    direct: bool = False
    """Whether the attempt goes to the function's own address."""
    is_plain: bool = False
    """Whether its whole request was sent, and none of its answer received, by `wire.plain_calls`."""
    sent_at: float = 0.0
    due: float = 0.0
    """When to look after the call although its connection is silent, or to repeat it after a failure."""
    _ends: float = 0.0
    """The end of the attempt."""
    _listened_at: float = 0.0
    """Since when the attempt's answer is waited for."""
    _questions: int = 0
    _gateway_failures: int = 0
    _deaths: int = 0
    """How many attempts the function has broken off."""

    @property
    def is_sending(self) -> bool:
        """Whether a part of the request is still to be sent."""
        return self.connection is not None and self.connection.sending

    def start(self, address: Address, direct: bool, now: float) -> None:
        """Begin an attempt."""
        self.address, self.direct, self.sent_at = address, direct, now
        self._listened_at = now
        self._ends = min(self.deadline, now + self.policy.attempt(direct, self._gateway_failures))
        self._questions = 0
        patience = min(self.policy.loss_patience, self.policy.patience(0))
        self.due = min(self._ends, now + patience) if direct else self._ends

    def listen(self, now: float) -> None:
        """Begin to wait for the answer: until now, that there was none did not mean that it is silent."""
        self._listened_at = now

    def is_over(self, now: float) -> bool:
        """Whether the attempt has taken too long."""
        return now >= self._ends

    def put_off(self, now: float) -> bool:
        """Whether it is too early to check the function's health. If so, sets the time of the next look."""
        patience_ends = min(self._ends, self._listened_at + self.policy.patience(0))
        early = now < patience_ends and self.connection is not None and not self.connection.is_losing
        if early:
            self.due = patience_ends
        return early

    def wait_on(self, now: float) -> None:
        """The function is alive, only slow: repeating the call would cost it more time."""
        self._questions += 1
        self.due = min(self._ends, now + self.policy.patience(self._questions))

    def time_out(self, now: float) -> None:
        """End the attempt without an answer."""
        failure = InvocationTimeout(f"function {self.function} did not answer in time")
        # What failed before says more than an attempt that is cut short by the deadline.
        self.fail(self.failure or failure if self._ends >= self.deadline else failure, now)

    def fail(self, failure: GatewayError, now: float, died: bool = False) -> None:
        """End the attempt. A call that failed directly is repeated at once: its gateway is not to blame."""
        self.failure = failure
        self._deaths += died
        self.hang_up()
        if self.direct:
            self.due = now
        else:
            self._gateway_failures += 1
            self.due = now + self.policy.backoff(self._gateway_failures)

    def hang_up(self) -> None:
        """Close the connection: its answer is still to come, so that no other call can use it."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
            self.is_plain = False

    def is_lost(self, now: float) -> bool:
        """Whether its time is over, or it has failed and there is no time for another attempt."""
        return now >= self.deadline or (self.connection is None and self.due >= self.deadline)

    def error(self, now: float) -> GatewayError:
        """What to raise when there is no more time."""
        failure = self.failure or InvocationTimeout(f"function {self.function} did not answer in time")
        if self._deaths < 2:
            return failure
        return type(failure)(
            f"{failure}; it broke off {self._deaths} calls in {now - self.began:.0f} s, perhaps because its "
            "memory limit is too low: see its log"
        )


def error_of(pending: Sequence[Call], now: float, aborted: bool) -> GatewayError:
    """The error of calls that are given up; it tells which functions they needed."""
    first = pending[0]
    error = FunctionUnavailable(f"function {first.function}: aborted") if aborted else first.error(now)
    error.functions = frozenset(call.function for call in pending)
    return error

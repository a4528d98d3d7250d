"""Invokers, and invocations whose functions answer as a test chooses."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from control_plane.faas.call import InvocationPolicy
from control_plane.faas.connection import Address
from control_plane.faas.invoking.invoker import Invoker
from functions.contract.messages import Invocation, InvocationResult
from tests.support.functions.loopback_server import Call, Responder

RESULT = InvocationResult(np.zeros((3, 24), np.float32), "an instance", "nowhere", 0.0, 0)
PATIENT = InvocationPolicy(attempt_timeout=20, deadline=30, first_backoff=0.01)


def invocation(rows: int = 3) -> Invocation:
    """An invocation that RESULT answers, if it has 3 rows."""
    return Invocation(
        layer=0,
        model="m",
        hidden_states=np.zeros((rows, 24), np.float32),
        expert_index=np.tile(np.array([1, 2, -1, 2], np.int16), (rows, 1)),
        expert_weight=np.ones((rows, 4), np.float32),
    )


def answers(address: object = "nowhere", **changes: Any) -> Responder:
    """Answers an invocation of 3 rows well, and announces an address."""
    body = b"".join(replace(RESULT, address=str(address), **changes).encode())
    return lambda call: call.reply(200, body)


def plain(number: int, body: bytes = b"") -> Responder:
    return lambda call: call.reply(number, body)


def never(call: Call) -> None:
    call.wait_for_hang_up()


def by_path(responders: Mapping[str, Responder]) -> Responder:
    """A gateway that answers for each function as its responder does."""
    return lambda call: responders[call.path.removeprefix("/function/")](call)


@contextmanager
def invoker_of(gateway: Address, policy: InvocationPolicy = PATIENT, **options: Any) -> Iterator[Invoker]:
    """An invoker of functions behind one gateway, whose 404 says nothing unless the test says otherwise."""
    options.setdefault("is_absent", lambda _: False)
    invoker = Invoker(lambda _: gateway, policy=policy, **options)
    try:
        yield invoker
    finally:
        invoker.close()

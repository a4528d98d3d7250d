"""Functions that fail for good: how long each step waits for them, and whom the error blames."""

import time
from collections.abc import Mapping
from dataclasses import replace

import pytest

from control_plane.errors import FunctionUnavailable
from functions.contract.messages import Invocation
from tests.support.functions.invoking import PATIENT, answers, by_path, invocation, invoker_of, plain
from tests.support.functions.loopback_server import loopback_server

pytestmark = pytest.mark.usefixtures("either_way")


def test_a_function_that_failed_for_a_whole_deadline_is_given_less_time_until_it_answers() -> None:
    policy = replace(PATIENT, deadline=1.0, broken_deadline=0.2, first_backoff=0.05, max_backoff=0.05)
    responders = {"a": answers(), "b": plain(500)}
    both = {"a": invocation(), "b": invocation()}

    def seconds(invocations: Mapping[str, Invocation]) -> float:
        began = time.monotonic()
        with pytest.raises(FunctionUnavailable, match="function b answered 500") as raised:
            invoker.begin(invocations).wait()
        assert raised.value.functions == {"b"}
        return time.monotonic() - began

    with loopback_server(by_path(responders)) as gateway, invoker_of(gateway.address, policy) as invoker:
        assert seconds(both) > 0.9
        assert seconds(both) < 0.6
        invoker.begin({"a": invocation()}).wait()
        assert seconds({"b": invocation()}) < 0.6
        responders["b"] = answers()
        invoker.begin(both).wait()
        responders["b"] = plain(500)
        assert seconds(both) > 0.9

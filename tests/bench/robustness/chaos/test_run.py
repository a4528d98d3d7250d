"""Short runs of the chaos test with real processes."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest
from click.testing import CliRunner

from bench.robustness.chaos import injector, run
from bench.robustness.chaos.faults import FAULTS, Fault
from bench.robustness.stack import Stack
from tests.support.paths import DEMO_MODEL

# Several starts of a control plane take long on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(injector, "QUIET_SECONDS", 1.0)
    monkeypatch.setattr(injector, "STEADY_SECONDS", 1.0)
    monkeypatch.setattr(run, "PROMPTS", 6)
    monkeypatch.setattr(run, "MAX_TOKENS", 16)


@pytest.mark.usefixtures("_short")
def test_killed_and_redeployed_functions_and_a_killed_control_plane_change_no_answer() -> None:
    names = ("function-killed", "function-redeployed", "control-plane-killed")
    before = psutil.Process().children(recursive=True)
    result = asyncio.run(run.chaos(DEMO_MODEL, [FAULTS[name] for name in names], 0.0, seed=1, streams=8))
    assert psutil.Process().children(recursive=True) == before
    assert result.held, "\n".join(result.lines())
    by_name = {fault.name: fault for fault in result.faults}
    assert [by_name[name].times for name in names] == [1, 1, 1]
    assert by_name["control-plane-killed"].cut > 0
    assert by_name["control-plane-killed"].recovery > 0
    assert by_name["control-plane-killed"].stall > 0
    assert all(account.completed > 0 for account in result.accounts)
    # The order depends on the seed alone.
    order = [fault.name for fault in random.Random(1).sample([FAULTS[name] for name in names], 3)]
    assert list(by_name) == [*order, "no fault"]


@pytest.mark.usefixtures("_short")
def test_a_fault_that_nobody_mends_is_told_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(injector, "RECOVERY_SECONDS", 3.0)

    lines: list[str] = []

    @asynccontextmanager
    async def hang_control_plane(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
        os.kill(stack.control_plane.pid, signal.SIGSTOP)
        yield

    fault = Fault("broken", hang_control_plane)
    result = asyncio.run(run.chaos(DEMO_MODEL, [fault], 0.0, seed=0, streams=8, log=lines.append))
    assert not result.held
    assert result.faults[0].failures == ["no recovery within 3 s"]
    assert result.faults[0].stall > 3
    assert result.faults[0].lost == 0
    assert [account.unbooked for account in result.accounts] == [0] * 8
    assert (result.processes_left, result.connections_left) == (0, 0)
    assert any("broken: no recovery" in line for line in lines)


def test_names_of_faults_are_checked() -> None:
    answer = CliRunner().invoke(run.main, ["--faults", "function-killed,earthquake"])
    assert answer.exit_code == 2
    assert "no fault 'earthquake'; there are function-killed, " in answer.output

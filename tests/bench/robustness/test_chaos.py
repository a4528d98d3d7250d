"""Short runs of the chaos test and the soak with real processes."""

import asyncio
import os
import random
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from bench.robustness import chaos, faults, injector, soak
from bench.robustness.faults import FAULTS, Fault
from bench.robustness.stack import Stack
from tests.support.paths import DEMO_MODEL

# Several starts of a control plane take long on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(injector, "QUIET_SECONDS", 1.0)
    monkeypatch.setattr(injector, "STEADY_SECONDS", 1.0)
    monkeypatch.setattr(chaos, "PROMPTS", 6)
    monkeypatch.setattr(chaos, "MAX_TOKENS", 16)


@pytest.mark.usefixtures("_short")
def test_killed_and_redeployed_functions_and_a_killed_control_plane_change_no_answer() -> None:
    names = ("function-killed", "function-redeployed", "control-plane-killed")
    before = psutil.Process().children(recursive=True)
    result = asyncio.run(chaos.chaos(DEMO_MODEL, [FAULTS[name] for name in names], 0.0, seed=1, streams=8))
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
    result = asyncio.run(chaos.chaos(DEMO_MODEL, [fault], 0.0, seed=0, streams=8, log=lines.append))
    assert not result.held
    assert result.faults[0].failures == ["no recovery within 3 s"]
    assert result.faults[0].stall > 3
    assert result.faults[0].lost == 0
    assert [account.unbooked for account in result.accounts] == [0] * 8
    assert (result.processes_left, result.connections_left) == (0, 0)
    assert any("broken: no recovery" in line for line in lines)


def test_a_replaced_database_holds_what_was_written_before(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as open_before:
        open_before.execute("PRAGMA journal_mode = WAL")
        open_before.execute("CREATE TABLE t (n)")
        open_before.execute("INSERT INTO t VALUES (7)")
        inode = file.stat().st_ino
        faults.put_copy_in_place(file)
        assert file.stat().st_ino != inode
        with closing(sqlite3.connect(file, isolation_level=None)) as after:
            after.execute("INSERT INTO t VALUES (8)")
            assert after.execute("SELECT n FROM t").fetchall() == [(7,), (8,)]
            assert open_before.execute("SELECT n FROM t").fetchall() == [(7,)]
    assert [path.name for path in tmp_path.iterdir()] == ["x.db"]


def test_names_of_faults_are_checked() -> None:
    answer = CliRunner().invoke(chaos.main, ["--faults", "function-killed,earthquake"])
    assert answer.exit_code == 2
    assert "no fault 'earthquake'; there are function-killed, " in answer.output


def test_a_short_soak_samples_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "BUSY_SECONDS", 4.0)
    result = asyncio.run(soak.soak(DEMO_MODEL, 20.0, seed=0))
    assert result.unexpected == []
    assert set(result.sent) == {"chat", "completion", "stream", "cancelled stream", "bad request"}
    functions = {f"demo-l{layer:02}-e00-15" for layer in range(6)}
    assert {each.process for each in result.series} == {"control plane", "gateway", *functions}
    assert {each.measure.name for each in result.series} == {"memory", "threads", "open files"}
    samples = {each.process: len(each.points) for each in result.series}
    # Functions went to zero in the pauses, and the servers did not.
    assert samples["demo-l00-e00-15"] < samples["gateway"]

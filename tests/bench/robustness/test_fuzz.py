"""The fuzzer finds what it should find, and its targets have nothing to find in a few inputs."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from bench.robustness.fuzz import supervisor
from bench.robustness.fuzz.progress import Progress
from bench.robustness.fuzz.share import Share, input_of, run_share
from bench.robustness.fuzz.supervisor import Order, Outcome, supervise
from bench.robustness.fuzz.support import model
from bench.robustness.fuzz.support.target import Target
from bench.robustness.fuzz.targets import TARGETS
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

SERVERS = {"function", "api", "system"}
INPUTS = 60

FAULTY_WORKER = """
import os, sys, time
from pathlib import Path
from bench.robustness.fuzz.progress import Progress
from bench.robustness.fuzz.support.target import Target
from bench.robustness.fuzz.share import Share, run_share

held = []

def run(data):
    {fault}
    return True

options = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
share = Share(int(options["seed"]), int(options["first"]), int(options["stop"]))
with Progress(Path(options["progress"])) as progress:
    target = Target(lambda random: random.randbytes(8), run)
    run_share(target, "faulty", share, progress, Path(options["findings"]))
"""


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.write(folder)
    return folder


@pytest.fixture
def progress(tmp_path: Path) -> Iterator[Progress]:
    with Progress(tmp_path / "progress") as opened:
        yield opened


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in SERVERS])
def test_a_few_inputs_find_nothing(name: str, tiny_model: Path, progress: Progress, tmp_path: Path) -> None:
    with TARGETS[name].open(tiny_model) as target:
        run_share(target, name, Share(0, 0, INPUTS), progress, tmp_path / "findings")
    found = [path.read_text() for path in tmp_path.glob("findings/*.txt")]
    assert found == []
    assert progress.accepted + progress.refused == progress.begun == INPUTS
    assert progress.refused > 0
    assert progress.memory_end > 0


@pytest.mark.parametrize("name", ["invocations", "answers", "gated-ffn", "checkpoints", "workloads"])
def test_some_inputs_are_accepted(name: str, tiny_model: Path) -> None:
    with TARGETS[name].open(tiny_model) as target:
        assert any(target.run(input_of(target, name, 1, number)) for number in range(100))


def test_an_input_can_be_made_again(tiny_model: Path) -> None:
    with TARGETS["answers"].open(tiny_model) as target:
        first, again, other, seed = (
            input_of(target, "answers", *key) for key in ((3, 70), (3, 70), (3, 71), (4, 70))
        )
    assert first == again
    assert len({first, other, seed}) == 3


def test_a_finding_is_written_with_a_smaller_input(progress: Progress, tmp_path: Path) -> None:
    def run(data: bytes) -> bool:
        if b"!" in data:
            raise ZeroDivisionError("a fault")
        return False

    target = Target(lambda random: b"before" * 100 + b"!" + b"after" * 100, run)
    run_share(target, "name", Share(7, 3, 4), progress, tmp_path)
    assert (progress.findings, progress.accepted, progress.refused) == (1, 0, 0)
    assert (tmp_path / "name-7-3.input").read_bytes() == b"!"
    text = (tmp_path / "name-7-3.txt").read_text()
    assert "name, seed 7, number 3" in text
    assert "ZeroDivisionError: a fault" in text


def supervised(fault: str, folder: Path, inputs: int = 8) -> Outcome:
    """The outcome of a worker whose target does `fault` with its input `data`."""
    order = Order("faulty", 5, inputs, 60.0, folder)
    command = [sys.executable, "-c", FAULTY_WORKER.format(fault=fault)]
    return supervise(order, command, {"PYTHONPATH": str(ROOT)}, ROOT)


def input_number(number: int) -> bytes:
    return Random(f"faulty/5/{number}").randbytes(8)


def test_a_crash_is_a_finding_and_the_next_inputs_are_run(tmp_path: Path) -> None:
    outcome = supervised(f"if data == {input_number(2)!r}: os.abort()", tmp_path)
    assert (outcome.inputs, outcome.accepted, outcome.findings) == (8, 7, 1)
    assert (tmp_path / "faulty-5-2.input").read_bytes() == input_number(2)
    assert "ended with status -6" in (tmp_path / "faulty-5-2.txt").read_text()


def test_a_hang_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(supervisor, "HANG_SECONDS", 5.0)
    began = time.monotonic()
    outcome = supervised(f"data == {input_number(2)!r} and time.sleep(600)", tmp_path)
    assert (outcome.inputs, outcome.accepted, outcome.findings) == (8, 7, 1)
    assert "took more than" in (tmp_path / "faulty-5-2.txt").read_text()
    assert time.monotonic() - began < 60


def test_memory_that_grows_is_a_finding(tmp_path: Path) -> None:
    outcome = supervised("held.append(os.urandom(10 << 20))", tmp_path)
    assert outcome.findings == 1
    assert 50e6 < outcome.growth < 80e6
    assert "memory grew" in (tmp_path / "faulty-5-7.txt").read_text()


def test_a_traceback_of_a_process_is_a_finding(tmp_path: Path) -> None:
    outcome = supervised("print('Traceback (most recent call last)', file=sys.stderr)", tmp_path)
    assert (outcome.accepted, outcome.findings) == (8, 1)
    assert "printed a traceback" in (tmp_path / "faulty-5-7.txt").read_text()


def test_processes_of_a_crashed_worker_are_ended(tmp_path: Path) -> None:
    mark = f"sleep {time.time_ns() % 10**6 + 10**6}"
    fault = f"import subprocess; subprocess.Popen({mark.split()!r}, start_new_session=True); os.abort()"
    assert supervised(fault, tmp_path, inputs=1).findings == 1
    assert mark not in {commandline(path) for path in Path("/proc").glob("[0-9]*/cmdline")}


def commandline(path: Path) -> str:
    """The command of a process; empty if it has ended."""
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""

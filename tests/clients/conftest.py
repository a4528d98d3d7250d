"""A server of the other environment, with the model whose answers are known."""

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ENVIRONMENT = Path(os.environ["FAASMOE_ENVIRONMENT"])
"""The virtual environment with FaaSMoE."""
MODEL = "scripted"
START_SECONDS = 120
STOP_SECONDS = 30


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    """Without a path, such as http://127.0.0.1:8000."""
    key: str
    """A tenant's key."""

    @property
    def v1(self) -> str:
        """The base URL for OpenAI's clients."""
        return f"{self.url}/v1"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests, which serves requests with a key only."""
    folder = tmp_path_factory.mktemp("server")
    environment = {
        **os.environ,
        "FAASMOE_DATABASE": str(folder / "faasmoe.db"),
        "XDG_STATE_HOME": str(folder / "state"),
    }
    checkpoint = folder / MODEL
    program = [str(ENVIRONMENT / "bin" / "python"), "-m", "tests.support.scripted_model", str(checkpoint)]
    subprocess.run(program, check=True, timeout=START_SECONDS)
    faasmoe = str(ENVIRONMENT / "bin" / "faasmoe")
    added = subprocess.run(
        [faasmoe, "tenants", "add", "acme"], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    arguments = ["up", str(checkpoint), "--port", "0", "--gateway-port", "0", "--keys-only"]
    log = folder / "log"
    with (
        log.open("w") as errors,
        # Without a buffer, `select` sees each line.
        subprocess.Popen(
            [faasmoe, *arguments], env=environment, stdout=subprocess.PIPE, stderr=errors, bufsize=0
        ) as process,
    ):
        try:
            yield Server(_address(process, log), added.stdout.strip())
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Waits for the line that names the server's address."""
    assert process.stdout
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends:
        if select.select([process.stdout], [], [], 1)[0]:
            line = process.stdout.readline().decode()
            if line.startswith("serving on "):
                return line.removeprefix("serving on ").split(";")[0]
            if not line:
                break
    raise AssertionError(f"the server did not start: {log.read_text()}")

"""A server of the other environment, with the model whose answers are known."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    checkpoint: Path
    """The model's folder, with its tokenizer."""

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
    program = [
        str(ENVIRONMENT / "bin" / "python"),
        "-m",
        "tests.support.models.scripted_model",
        str(checkpoint),
    ]
    subprocess.run(program, check=True, timeout=START_SECONDS)
    faasmoe = str(ENVIRONMENT / "bin" / "faasmoe")
    added = subprocess.run(
        [faasmoe, "tenants", "add", "acme"], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    up = [faasmoe, "up", str(checkpoint), "--port", "0", "--gateway-port", "0", "--keys-only"]
    with running(up, r"^serving on ([^;]+)", folder / "log", environment) as url:
        yield Server(url, added.stdout.strip(), checkpoint)


@contextmanager
def running(command: list[str], pattern: str, log: Path, environment: dict[str, str]) -> Iterator[str]:
    """Run a server until the context ends; yields its address, the pattern's group in what it prints."""
    with (
        log.open("w") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield _address(process, pattern, log)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _address(process: subprocess.Popen[bytes], pattern: str, log: Path) -> str:
    """Waits until the log has a server's address."""
    ends = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < ends:
        if found := re.search(pattern, log.read_text(), re.MULTILINE):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(f"the server did not start: {log.read_text()}")

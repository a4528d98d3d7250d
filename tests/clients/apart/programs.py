"""Runs the programs of this environment."""

import os
import subprocess
import sys
from pathlib import Path

from tests.clients.conftest import Server

SECONDS = 120


def run(*command: object, server: Server, folder: Path) -> None:
    """Run a program of this environment, without the internet; it may keep files in the folder."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_HOME": str(folder / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "OPENAI_API_KEY": server.key,
        "OPENAI_BASE_URL": server.v1,
    }
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

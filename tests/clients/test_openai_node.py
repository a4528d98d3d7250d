"""OpenAI's client for Node: tests/clients/node/openai.test.js."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import MODEL, Server
from tests.clients.weather import QUESTION, REPORT

FOLDER = Path(__file__).parent / "node"


@pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")
def test_openai_s_client(server: Server) -> None:
    variables = {
        "BASE_URL": server.v1,
        "API_KEY": server.key,
        "MODEL": MODEL,
        "QUESTION": QUESTION,
        "REPORT": REPORT,
    }
    tests = subprocess.run(
        ["node", "--test", "--test-reporter=spec", "openai.test.js"],
        cwd=FOLDER,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert tests.returncode == 0, tests.stdout

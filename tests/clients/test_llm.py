"""The command `llm`, with the server's model in its extra-openai-models.yaml."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import MODEL, Server
from tests.clients.weather import NAME, QUESTION, REPORT, RESULT

MODELS = """\
- model_id: faasmoe
  model_name: {model}
  api_base: {url}
  api_key_name: faasmoe
  supports_schema: true
  supports_tools: true
"""
FUNCTIONS = f"""\
def {NAME}(city: str) -> str:
    "The weather of a city."
    return "{RESULT} in " + city
"""
PLUGIN = f"""\
import llm

{FUNCTIONS}

@llm.hookimpl
def register_tools(register):
    register({NAME})
"""
PROGRAM_SECONDS = 60

Llm = Callable[..., str]


@pytest.fixture
def llm(server: Server, tmp_path: Path) -> Llm:
    """Runs the command, with a folder of its own; returns what it prints."""
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS.format(model=MODEL, url=server.v1))

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [Path(sys.executable).with_name("llm"), *arguments],
            env={**os.environ, "LLM_USER_PATH": str(tmp_path), "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=PROGRAM_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    run("keys", "set", "faasmoe", "--value", server.key)
    return run


def test_a_prompt(llm: Llm) -> None:
    assert llm("-m", "faasmoe", QUESTION) == REPORT
    assert llm("-m", "faasmoe", "--no-stream", QUESTION) == REPORT


def test_a_conversation(llm: Llm) -> None:
    llm("-m", "faasmoe", QUESTION)
    assert llm("-c", "And now?") == REPORT
    first, second = json.loads(llm("logs", "--json", "-n", "2"))
    assert first["conversation_id"] == second["conversation_id"]


def test_a_schema(llm: Llm) -> None:
    answer = llm("-m", "faasmoe", "--schema", "city, degrees int", QUESTION)
    assert json.loads(answer) == {"city": "", "degrees": 0}


@pytest.mark.parametrize("option", ["--functions", "-T"])
def test_a_tool(llm: Llm, tmp_path: Path, option: str) -> None:
    install_plugin(tmp_path)
    assert llm("-m", "faasmoe", option, FUNCTIONS if option == "--functions" else NAME, QUESTION) == REPORT
    (last,) = json.loads(llm("logs", "--json", "-n", "1"))
    assert [result["output"] for result in last["tool_results"]] == ["sunny in Rome"]


def install_plugin(folder: Path) -> None:
    """Put a plugin with the tool where Python looks for packages."""
    (folder / "weather_plugin.py").write_text(PLUGIN)
    information = folder / "weather_plugin-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: weather-plugin\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[llm]\nweather = weather_plugin\n")

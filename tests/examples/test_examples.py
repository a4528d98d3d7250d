"""The examples run as real processes against a server, and print answers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from control_plane.partition.manifest import Manifest
from tests.support.api.api_server import ApiClient, serving
from tests.support.command_line import faasmoe
from tests.support.paths import DEMO_MODEL, ROOT

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiClient]:
    """A server for the bundled model, like `faasmoe up models/demo`."""
    folder = tmp_path_factory.mktemp("demo")
    assert faasmoe("partition", DEMO_MODEL, folder / "partition", "--name", "demo").exit_code == 0
    with serving(folder / "partition", folder / "faasmoe.db", open=True) as client:
        yield client


def run(*command: object, api: ApiClient, path: str = "") -> list[str]:
    """Run a program against the server; returns the lines that it prints."""
    environment = {
        "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"],
        "OPENAI_BASE_URL": str(api.url / "v1"),
    }
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_openai_client(api: ApiClient) -> None:
    lines = run(sys.executable, EXAMPLES / "openai_client.py", api=api)
    assert lines[0] == "model: demo"
    assert all(any(line.startswith(start) for line in lines) for start in ("completion: ", "chat: "))


def test_several_tenants(api: ApiClient) -> None:
    lines = run(sys.executable, EXAMPLES / "several_tenants.py", api=api)
    assert [line.split(":")[0] for line in lines] == ["acme", "globex", "initech"]
    assert all(line.endswith("calls of functions") for line in lines)


def test_lm_eval(api: ApiClient, tmp_path: Path) -> None:
    """A stub takes the options and sends a request. `make clients` runs the real program."""
    program = tmp_path / "lm_eval"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, sys, urllib.request\n"
        "options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))\n"
        "arguments = dict(pair.split('=', 1) for pair in options['--model_args'].split(','))\n"
        "body = {'model': arguments['model'], 'prompt': 'a', 'max_tokens': 1, 'logprobs': 1, 'echo': True}\n"
        "request = urllib.request.Request(\n"
        "    arguments['base_url'], json.dumps(body).encode(), {'Content-Type': 'application/json'}\n"
        ")\n"
        "answer = json.load(urllib.request.urlopen(request, timeout=30))\n"
        "print(options['--model'], options['--tasks'], len(answer['choices'][0]['logprobs']['tokens']) > 0)\n"
    )
    program.chmod(0o755)
    lines = run("sh", EXAMPLES / "lm_eval.sh", DEMO_MODEL, "arc_easy", api=api, path=str(tmp_path))
    assert lines == ["local-completions arc_easy True"]


def test_stack(tmp_path: Path) -> None:
    """The example equals the stack file of its partition, except for the differences that it explains."""
    folder = tmp_path / "demo-2"
    options = ("--name", "demo", "--layers-per-function", 3)
    assert faasmoe("partition", DEMO_MODEL, folder, *options).exit_code == 0
    assert faasmoe("stack", folder, "-o", tmp_path / "stack.yml").exit_code == 0
    written = yaml.safe_load((tmp_path / "stack.yml").read_text())["functions"]
    example = yaml.safe_load((EXAMPLES / "stack.yml").read_text())["functions"]
    assert example.keys() == written.keys()
    for name, function in example.items():
        generated = written[name]
        assert function["lang"] == generated["lang"]
        assert function["image"].endswith("/" + Manifest.load(folder).image)
        assert function["environment"] == generated["environment"]
        assert function["annotations"].items() <= generated["annotations"].items()
        assert function["labels"].keys() == generated["labels"].keys()
        assert function["secrets"] == generated["secrets"]

"""Commands in README and docs: all exist with their options, and marked blocks run, in order."""

import re
import shlex
import socket
from contextlib import ExitStack
from pathlib import Path

import click
import pytest

from control_plane.cli.main import main
from tests.support.command_line import faasmoe, running_command
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
COMMAND = re.compile(r"^(?: {4}|\$ |)(?:\w+=\S+ )*(faasmoe [a-z][^#|\n]*)", re.M)
INLINE = re.compile(r"`(faasmoe [a-z][^`]*)`")
SERVERS = ("up", "gateway", "serve")


def commands(text: str) -> list[list[str]]:
    """The words of each `faasmoe` command of a page, in code blocks and in backquotes."""
    prose: list[str] = []
    code: list[str] = []
    for number, part in enumerate(re.sub(r"\\\n\s*", "", text).split("```")):
        (code if number % 2 else prose).append(part)
    found = [line for part in (*code, *prose) for line in COMMAND.findall(part)]
    found += [inline for part in prose for inline in INLINE.findall(part)]
    return [shlex.split(" ".join(command.split("&&")[0].split())) for command in found]


def unknown_words(words: list[str]) -> list[str]:
    """The words of a command that are neither command nor option. `...` or a capital ends the command."""
    command: click.Command = main
    rest = words[1:]
    while isinstance(command, click.Group) and rest and rest[0][0].islower():
        name = rest.pop(0).rstrip(".,;:")
        if name not in command.commands:
            return [name]
        command = command.commands[name]
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    known |= {"--help", "-h", "--version"}
    options = [word.split("=")[0].rstrip(".,;:)") for word in rest if word.startswith("-") and word != "-"]
    return [option for option in options if option not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    wrong = {" ".join(words): bad for words in commands(page.read_text()) if (bad := unknown_words(words))}
    assert wrong == {}


def test_commands_are_found() -> None:
    code = "\n```\n$ faasmoe serve X --gateway Y   # why\nA=b faasmoe status --no\n```"
    text = "    faasmoe up X --bad\nThen `faasmoe nope\nX`." + code
    assert sorted(map(unknown_words, commands(text))) == [[], ["--bad"], ["--no"], ["nope"]]


def marked_block(page: str, name: str) -> list[str]:
    """The command lines of the code block after `<!-- run: name -->`, without prompts and comments."""
    block = (ROOT / page).read_text().split(f"<!-- run: {name} -->\n", 1)[1].split("```")[1]
    return [
        line.removeprefix("$ ").split(" #")[0].strip() for line in block.splitlines() if line.startswith("$ ")
    ]


@pytest.fixture
def free_ports() -> tuple[int, int]:
    """Two free ports, for gateway and control plane."""
    with socket.socket() as one, socket.socket() as two:
        for unused in (one, two):
            unused.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


@pytest.mark.parametrize(
    ("page", "name"), [("README.md", "up"), ("README.md", "steps"), ("docs/serving.md", "tenants")]
)
def test_commands_run(
    page: str,
    name: str,
    chat_checkpoint: Path,
    tmp_path: Path,
    free_ports: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway, server = free_ports
    ports = {"gateway": ["--port", gateway], "serve": ["--port", server], "up": ["--port", server]}
    monkeypatch.setenv("FAASMOE_URL", f"http://127.0.0.1:{server}")
    monkeypatch.setenv("FAASMOE_DATABASE", str(tmp_path / "faasmoe.db"))
    places = {"MODEL_DIR": str(chat_checkpoint), "OUT_DIR": str(tmp_path / "out")}
    lines = marked_block(page, name)
    assert lines
    with ExitStack() as stack:
        for line in lines:
            words = [places.get(word, word).replace(":8080", f":{gateway}") for word in shlex.split(line)[1:]]
            if words[0] not in SERVERS:
                result = faasmoe(*words)
                assert result.exit_code == 0, f"{line}: {result.output}"
                continue
            command = running_command(*words, *ports[words[0]], temporary=tmp_path)
            stack.enter_context(command).wait_for("Ctrl-C stops it")


FILE = re.compile(r"(?:`|\]\()((?:\.?[\w-]+/)*[\w.-]*\.(?:py|md|yml|yaml|sh|h|c|cfg|service|Dockerfile))[`)]")
FOLDERS = ("", "control_plane", "docs", "examples", "functions/kernels")
WRITTEN = {"stack.yml"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_exist(page: Path) -> None:
    """Every file that a page names exists below the root, a package, or the page's folder."""
    named = set(FILE.findall(page.read_text())) - WRITTEN
    folders = [page.parent, *(ROOT / folder for folder in FOLDERS)]
    assert {name for name in named if not any((folder / name).exists() for folder in folders)} == set()

"""The `faasmoe` command: help, version, and errors that commands have in common."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest

from control_plane.cli.main import main
from tests.support.command_line import error_line, faasmoe, usage_error


@pytest.mark.parametrize("name", sorted(main.commands))
def test_help_of_every_command(name: str) -> None:
    result = faasmoe(name, "--help")
    assert result.exit_code == 0
    command = main.commands[name]
    assert result.output.startswith(f"Usage: main {name} [OPTIONS]")
    for parameter in command.params:
        # The help shows an argument's name, and all spellings and the help of an option.
        if isinstance(parameter, click.Option):
            assert all(option in result.output for option in parameter.opts)
            assert parameter.help
        else:
            assert str(parameter.name).upper() in result.output


def test_help_lists_the_commands() -> None:
    for flag in ("-h", "--help"):
        result = faasmoe(flag)
        assert result.exit_code == 0
        assert all(f"\n  {name} " in result.output for name in main.commands)
    assert "partition" in main.commands


def test_help_does_not_wait_for_torch() -> None:
    program = "import control_plane.cli.main, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_version() -> None:
    result = faasmoe("--version")
    assert result.exit_code == 0
    assert version("faasmoe") in result.output


def test_unknown_commands_and_options() -> None:
    assert "No such command 'depoly'" in usage_error(faasmoe("depoly"))
    assert "No such option '--grain'" in usage_error(faasmoe("partition", "a", "b", "--grain", 3))


@pytest.mark.parametrize("command", ["verify", "stack", "gateway", "deploy", "serve"])
def test_folders_that_are_no_partition(command: str, tmp_path: Path) -> None:
    assert f"{tmp_path} is not a partition" in error_line(faasmoe(command, tmp_path))
    assert "does not exist" in usage_error(faasmoe(command, tmp_path / "missing"))

"""The help, and the commands that need no server: their output and their errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from control_plane.cli.main import main
from control_plane.partition.manifest import Manifest
from tests.support.command_line import error_line, faasmoe, usage_error
from tests.support.tiny_chat_model import EXPERTS


@pytest.fixture
def checkpoint(chat_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, for tests that damage it."""
    return Path(shutil.copytree(chat_checkpoint, tmp_path / "model"))


@pytest.fixture
def damaged_partition(chat_partition: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(chat_partition, tmp_path / "damaged"))
    block = folder / Manifest.load(folder).blocks[1].file
    data = bytearray(block.read_bytes())
    data[-1] ^= 1
    block.write_bytes(data)
    return folder


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


def test_help_does_not_import_torch() -> None:
    program = "import control_plane.cli.main, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_version() -> None:
    result = faasmoe("--version")
    assert result.exit_code == 0
    assert "0.1.0" in result.output


def test_unknown_commands_and_options() -> None:
    assert "No such command 'depoly'" in usage_error(faasmoe("depoly"))
    assert "No such option '--grain'" in usage_error(faasmoe("partition", "a", "b", "--grain", 3))


def test_partition_then_verify(chat_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = faasmoe("partition", chat_checkpoint, out, "--layers-per-function", "all", "--dtype", "int8")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.output == f"{out}: 1 functions of 5 experts x 3 layers, int8 experts of 0.00 MB\n"
    assert Manifest.load(out).expert_dtype == "int8"
    result = faasmoe("verify", out)
    assert result.exit_code == 0
    assert result.output.startswith(f"{out} is whole: 1 blocks, fingerprint ")


def test_uneven_granularity_is_reported(chat_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--experts-per-function", 3, "--layers-per-function", 2, "--name", "Uneven")
    lines = faasmoe("partition", chat_checkpoint, out, *options).output.splitlines()
    assert lines[0].startswith(f"{out}: 4 functions of 3 experts x 2 layers, f32 experts of ")
    assert lines[1:] == [
        "5 experts and 3 layers do not divide evenly: uneven-l02-e03-04 has 2 experts",
    ]
    assert [block.num_experts for block in Manifest.load(out).blocks] == EXPERTS


@pytest.mark.parametrize(("most", "functions"), [(1, 1), (3, 3), (14, 10), (15, 15), (1000, 15)])
def test_max_functions(chat_checkpoint: Path, tmp_path: Path, most: int, functions: int) -> None:
    assert faasmoe("partition", chat_checkpoint, tmp_path / "out", "--max-functions", most).exit_code == 0
    assert len(Manifest.load(tmp_path / "out").blocks) == functions


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--experts-per-function", 6], "experts per function must be from 1 to 5 for this model, not 6"),
        (["--layers-per-function", "4"], "layers per function must be from 1 to 3 for this model, not 4"),
        (["--layers-per-function", "some"], "--layers-per-function must be a number or 'all', not 'some'"),
        (["--layers-per-function", "-1"], "--layers-per-function must be a number or 'all', not '-1'"),
        (
            ["--max-functions", 3, "--experts-per-function", 1],
            "--max-functions chooses the granularity: leave the other two options out",
        ),
        (
            ["--max-functions", 3, "--layers-per-function", "all"],
            "--max-functions chooses the granularity: leave the other two options out",
        ),
    ],
)
def test_bad_granularity(chat_checkpoint: Path, tmp_path: Path, options: list[object], problem: str) -> None:
    assert error_line(faasmoe("partition", chat_checkpoint, tmp_path / "out", *options)) == problem
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        ["--dtype", "fp8"],
        ["--experts-per-function", "many"],
        ["--max-functions", "1.5"],
        ["--max-functions", "0"],
    ],
)
def test_options_of_a_wrong_type(chat_checkpoint: Path, tmp_path: Path, options: list[str]) -> None:
    assert options[0] in usage_error(faasmoe("partition", chat_checkpoint, tmp_path / "out", *options))


def test_missing_checkpoint(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert error_line(faasmoe("partition", missing, tmp_path / "out")) == f"{missing} is not a folder"


def test_half_written_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert str(weights) in error_line(faasmoe("partition", checkpoint, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_unknown_family(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text()) | {"model_type": "llama"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    message = error_line(faasmoe("partition", checkpoint, tmp_path / "out"))
    assert message.startswith("model type 'llama' is not supported; these are: ")


def test_existing_out_dir(chat_checkpoint: Path, tmp_path: Path) -> None:
    message = error_line(faasmoe("partition", chat_checkpoint, tmp_path))
    assert message == f"{tmp_path} exists already: remove it, or choose another folder"


def test_verify_names_damaged_files(damaged_partition: Path) -> None:
    message = error_line(faasmoe("verify", damaged_partition))
    assert Manifest.load(damaged_partition).blocks[1].file in message


@pytest.mark.parametrize("command", ["verify", "stack", "gateway", "deploy", "serve"])
def test_folders_that_are_not_partitions(command: str, tmp_path: Path) -> None:
    assert f"{tmp_path} is not a partition" in error_line(faasmoe(command, tmp_path))
    assert "does not exist" in usage_error(faasmoe(command, tmp_path / "missing"))


def test_stack_on_stdout(chat_partition: Path) -> None:
    result = faasmoe("stack", chat_partition, "--gateway", "http://box:31112")
    assert (result.exit_code, result.stderr) == (0, "")
    stack = yaml.safe_load(result.output)
    assert stack["provider"]["gateway"] == "http://box:31112"
    assert list(stack["functions"]) == [block.function for block in Manifest.load(chat_partition).blocks]
    for function in stack["functions"].values():
        assert Path(function["handler"]).resolve() == chat_partition.resolve()


def test_stack_in_a_file_also_writes_the_template(chat_partition: Path, tmp_path: Path) -> None:
    file = tmp_path / "build" / "stack.yml"
    result = faasmoe("stack", chat_partition, "-o", file)
    assert (result.exit_code, result.output) == (0, "")
    for function in yaml.safe_load(file.read_text())["functions"].values():
        assert (file.parent / function["handler"]).resolve() == chat_partition.resolve()
        assert (file.parent / "template" / function["lang"] / "Dockerfile").is_file()
    assert (file.parent / "functions" / "expert" / "__main__.py").is_file()


def test_stack_that_cannot_be_written(chat_partition: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path) in error_line(
        faasmoe("stack", chat_partition, "-o", tmp_path / "file" / "stack.yml")
    )

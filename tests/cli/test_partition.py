"""`faasmoe partition` and `verify`: their output and their errors."""

import json
import shutil
from pathlib import Path

import pytest

from control_plane.partition.manifest import Manifest
from tests.support.command_line import error_line, faasmoe, usage_error
from tests.support.models.tiny_chat_model import EXPERTS


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


def test_partition_then_verify(chat_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = faasmoe("partition", chat_checkpoint, out, "--layers-per-function", "all", "--dtype", "int8")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.output == f"{out}: 1 functions of 5 experts x 3 layers, int8 experts of 0.00 MB\n"
    assert Manifest.load(out).gate_up_dtype == "int8"
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
    problem = f"{str(missing)!r} is no file or folder here, and no model's id"
    assert error_line(faasmoe("partition", missing, tmp_path / "out")).startswith(problem)


def test_half_written_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert str(weights) in error_line(faasmoe("partition", checkpoint, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_unknown_family(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text()) | {"model_type": "llama"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    message = error_line(faasmoe("partition", checkpoint, tmp_path / "out"))
    assert message == f"{checkpoint}: LlamaForCausalLM has no experts that transformers' interface replaces"


def test_existing_out_dir(chat_checkpoint: Path, tmp_path: Path) -> None:
    message = error_line(faasmoe("partition", chat_checkpoint, tmp_path))
    assert message == f"{tmp_path} exists already: remove it, or choose another folder"


def test_verify_names_damaged_files(damaged_partition: Path) -> None:
    message = error_line(faasmoe("verify", damaged_partition))
    assert Manifest.load(damaged_partition).blocks[1].file in message

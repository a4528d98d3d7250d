"""What `faasmoe inspect` says of models here."""

import json
from bisect import bisect_left
from pathlib import Path

import pytest
import torch

from bench.support.gguf.conversion import converted
from control_plane.architecture.choice import architecture_of
from control_plane.inspection.memory import Fit
from control_plane.inspection.report import Machine, Report, Size, report
from control_plane.inspection.text import lines
from control_plane.inspection.weights import stored_weights
from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.model.architecture import Architecture
from control_plane.partition.partitioner import partition
from tests.support.command_line import error_line, faasmoe
from tests.support.models.checkpoints import edit_config, save_checkpoint, tiny_model
from tests.support.models.gguf_files import plain, quantised, write_gguf
from tests.support.models.quantised_checkpoints import fp8, named, save
from tests.support.models.sparse_checkpoint import save_qwen15_moe

DATA = Path(__file__).parents[1] / "data"
MACHINE = Machine(memory=24 * 10**9, memory_bandwidth=26e9, disk_bandwidth=1.7e9)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    model = tiny_model("qwen2_moe", dtype=torch.bfloat16)
    return Checkpoint.open(save_checkpoint(model, tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def architecture(checkpoint: Checkpoint) -> Architecture:
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    return architecture_of(checkpoint.config, shapes)


@pytest.fixture(scope="module")
def tiny(checkpoint: Checkpoint, architecture: Architecture) -> Report:
    return report(checkpoint, checkpoint.name, architecture, MACHINE)


def test_the_text(tmp_path: Path) -> None:
    folder = save_qwen15_moe(tmp_path / "qwen1.5-moe")
    checkpoint = Checkpoint.open(folder)
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    found = report(checkpoint, checkpoint.name, architecture_of(checkpoint.config, shapes), MACHINE)
    assert "\n".join(lines(found)) + "\n" == (DATA / "inspect.txt").read_text()


def test_sizes_are_those_of_partitions(
    tiny: Report, checkpoint: Checkpoint, architecture: Architecture, tmp_path: Path
) -> None:
    for size in tiny.sizes:
        manifest = partition(
            checkpoint,
            tmp_path / f"{size.dtype}-{size.dense_dtype}",
            dtype=size.dtype,
            dense_dtype=size.dense_dtype,
            architecture=architecture,
        )
        assert len(manifest.blocks) == tiny.functions
        assert manifest.expert_nbytes == size.expert
        assert size.experts == size.expert * tiny.experts * tiny.moe_layers
        assert size.together == size.dense + size.experts
        # Files have headers besides.
        assert 0 < manifest.dense.nbytes - size.dense < 20_000


def test_budgets(checkpoint: Checkpoint, architecture: Architecture) -> None:
    def reported(memory: int, disk: float | None = 1e6) -> Size:
        return report(checkpoint, "tiny", architecture, Machine(memory, 26e9, disk)).sizes[0]

    assert reported(10**8).fits[-1] == Fit(None, None)
    everything = reported(2 * 10**9)
    assert everything.fits[-1] == Fit(5, 26e9 / everything.per_token)
    budgets = range(10**8, 2 * 10**9)
    least = budgets[
        bisect_left(budgets, True, key=lambda nbytes: reported(nbytes).fits[-1].resident is not None)
    ]
    size = reported(least)
    # Each of three functions holds two of its five experts. A token uses six in all, and the rest is read.
    speed = size.fits[-1].tokens_per_second
    assert size.fits[-1] == Fit(2, speed)
    assert speed == pytest.approx(1e6 / (6 * 3 / 5 * size.expert))
    assert reported(least, None).fits[-1] == Fit(2, None)


def test_forms_of_weights(tmp_path: Path) -> None:
    module = "model.layers.0.self_attn.q_proj"
    stored, _ = fp8(torch.randn(256, 128), (128, 128))
    config = {"model_type": "qwen3_moe", "quantization_config": {"quant_method": "fp8"}}
    found = stored_weights(Checkpoint.open(save(tmp_path / "fp8", named(module, stored), config)))
    assert found.format == "safetensors, fp8"
    assert found.nbytes == {"F8_E4M3": 256 * 128, "F32": 8}


def test_forms_of_weights_in_gguf(tmp_path: Path) -> None:
    model = tiny_model("qwen3_moe", hidden_size=32)
    architecture, metadata, tensors = converted(model)
    matrices = {
        name: quantised(values, "Q8_0") if values.ndim > 1 and values.shape[-1] % 32 == 0 else plain(values)
        for name, values in tensors.items()
    }
    found = stored_weights(Checkpoint.open(write_gguf(tmp_path / "m.gguf", architecture, metadata, matrices)))
    assert found.format == "GGUF"
    assert found.nbytes == {
        kind: sum(each.data.nbytes for each in matrices.values() if each.kind.name == kind)
        for kind in ("Q8_0", "F32")
    }


@pytest.mark.slow
def test_the_command(checkpoint: Checkpoint, tiny: Report, tmp_path: Path) -> None:
    result = faasmoe("inspect", checkpoint.folder, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found, wanted = json.loads(result.stdout), json.loads(json.dumps(tiny.to_json()))
    assert found.keys() == wanted.keys()
    measured = {"machine", "budgets", "sizes"}
    assert {key: found[key] for key in wanted if key not in measured} == {
        key: wanted[key] for key in wanted if key not in measured
    }
    assert faasmoe("inspect", checkpoint.folder).stdout.splitlines()[:5] == list(lines(tiny))[:5]


@pytest.mark.slow
def test_refusals(tmp_path: Path) -> None:
    folder = save_checkpoint(tiny_model("qwen3_moe"), tmp_path / "model")
    edit_config(folder, model_type="llama")
    assert error_line(faasmoe("inspect", folder)).startswith(f"{folder}: ")
    edit_config(folder, quantization_config={"quant_method": "other"})
    assert "quant_method 'other' are not supported" in error_line(faasmoe("inspect", folder))
    assert "is no file or folder here" in error_line(faasmoe("inspect", tmp_path / "none"))

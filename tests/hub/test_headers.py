"""The headers of a model on the hub make the same checkpoint as its files, without the weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.support.gguf.conversion import converted
from control_plane.errors import HubError, PartitionError
from control_plane.hub import headers
from control_plane.hub.headers import fetch_headers
from control_plane.hub.names import HubName
from control_plane.hub.repository import Repository
from control_plane.partition.checkpoint.reader import Checkpoint
from tests.support.hub_server import ID, Hub
from tests.support.models.checkpoints import save_checkpoint, tiny_model
from tests.support.models.gguf_files import plain, split, write_gguf
from tests.support.models.quantised_checkpoints import named, pack_quantised, save


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The headers of tiny models are to be fetched in several parts, too."""
    monkeypatch.setattr(headers, "_FIRST_NBYTES", 512)


def safetensors(folder: Path) -> Path:
    return save_checkpoint(tiny_model("qwen3_moe"), folder)


def sharded(folder: Path) -> Path:
    return save_checkpoint(tiny_model("qwen3_moe"), folder, max_shard_size="40KB")


def packed(folder: Path) -> Path:
    stored, _ = pack_quantised((40, 96), np.random.default_rng(0))
    config = {"model_type": "qwen3_moe", "quantization_config": {"quant_method": "compressed-tensors"}}
    return save(folder, named("model.layers.0.self_attn.q_proj", stored), config)


def gguf(folder: Path) -> Path:
    folder.mkdir()
    architecture, metadata, tensors = converted(tiny_model("qwen3_moe", hidden_size=32))
    stored = {name: plain(values) for name, values in tensors.items()}
    return write_gguf(folder / "tiny-F32.gguf", architecture, metadata, stored)


def split_gguf(folder: Path) -> Path:
    folder.mkdir()
    return split(gguf(folder / "whole"), folder / "parts", 2)[0]


@pytest.mark.parametrize("make", [safetensors, sharded, packed, gguf, split_gguf])
def test_a_checkpoint_by_its_headers(hub: Hub, make: Callable[[Path], Path], tmp_path: Path) -> None:
    model = make(tmp_path / "model")
    folder = model if model.is_dir() else model.parent
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    found = Checkpoint.open(fetch_headers(Repository.open(HubName.parse(ID)), tmp_path / "headers"))
    wanted = Checkpoint.open(model)
    assert found.config == wanted.config
    assert [(name, each.shape, each.dtype, each.stored_type) for name, each in found.tensors.items()] == [
        (name, each.shape, each.dtype, each.stored_type) for name, each in wanted.tensors.items()
    ]
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "headers").iterdir()}
    assert all(sizes[name] == len(hub.files[name]) for name in sizes)


def test_the_weights_are_not_fetched(hub: Hub, tmp_path: Path) -> None:
    model = safetensors(tmp_path / "model")
    hub.files = {path.name: path.read_bytes() for path in model.iterdir()}
    fetch_headers(Repository.open(HubName.parse(ID)), tmp_path / "headers")
    header = 8 + int.from_bytes(hub.files["model.safetensors"][:8], "little")
    assert hub.ranges("model.safetensors") == ["bytes=0-511", f"bytes=512-{header - 1}"]


def test_a_hub_that_sends_no_parts(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"config.json": b"{}", "model.safetensors": (900).to_bytes(8, "little") + bytes(2000)}
    hub.has_ranges = False
    with pytest.raises(HubError, match="the hub does not send parts of"):
        fetch_headers(Repository.open(HubName.parse(ID)), tmp_path / "headers")


def test_malformed_files(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"config.json": b"{}", "model.safetensors": b"\xff" * 600}
    with pytest.raises(PartitionError, match="is no safetensors file: a header of"):
        fetch_headers(Repository.open(HubName.parse(ID)), tmp_path / "1")
    hub.files = {"config.json": b"{}", "model.safetensors": (300).to_bytes(8, "little") + b"{" * 592}
    with pytest.raises(PartitionError, match="is not JSON"):
        fetch_headers(Repository.open(HubName.parse(ID)), tmp_path / "2")
    hub.files = {"tiny.gguf": b"GGUF" + bytes(2000)}
    with pytest.raises(PartitionError, match="version 0"):
        fetch_headers(Repository.open(HubName.parse(ID)), tmp_path / "3")
    hub.files = {"model.safetensors": b"1"}
    with pytest.raises(HubError, match=f"{ID} lacks 'config.json'"):
        fetch_headers(Repository.open(HubName.parse(ID)), tmp_path / "4")


def test_impossible_sizes(hub: Hub) -> None:
    hub.files, hub.stated_sizes = {"model.safetensors": b"1"}, {"model.safetensors": -1}
    with pytest.raises(HubError, match="is malformed"):
        Repository.open(HubName.parse(ID))

"""A function reads the same from a manifest as the control plane does."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from control_plane.partition.manifest import Manifest
from functions.contract.manifest import FunctionManifest, ManifestError
from tests.support.models.tiny_partition import TinyPartition


def test_it_equals_the_control_planes_manifest(tiny: TinyPartition) -> None:
    manifest = Manifest.load(tiny.folder)
    for block in manifest.blocks:
        read = FunctionManifest.read(tiny.folder, block.function)
        for name in ("fingerprint", "dtype", "hidden_size", "num_experts", "expert_nbytes"):
            assert getattr(read, name) == getattr(manifest, name)
        assert (read.gate_up_dtype, read.down_dtype) == (manifest.gate_up_dtype, manifest.down_dtype)
        assert (read.activation, read.has_bias) == (manifest.activation.activation, manifest.has_bias)
        assert (read.file, read.nbytes, read.offset) == (block.file, block.nbytes, block.offset)
        assert read.experts == [
            (layer, expert, checksum)
            for layer, experts in block.experts.items()
            for expert, checksum in zip(experts, block.checksums[layer], strict=True)
        ]
        assert (read.dense_nbytes, read.num_blocks) == (manifest.dense.nbytes, len(manifest.blocks))
        assert read.blocks_nbytes == sum(block.nbytes for block in manifest.blocks)


def test_a_function_that_the_manifest_lacks_is_an_error(tiny: TinyPartition) -> None:
    with pytest.raises(ManifestError, match="has no function 'another'"):
        FunctionManifest.read(tiny.folder, "another")


@pytest.mark.parametrize("text", ["", "[]", "1", "{}", '{"blocks": 1}', '{"blocks": [1]}', "[" * 100_000])
def test_a_malformed_manifest_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ManifestError, match=r"cannot read .*manifest\.json"):
        FunctionManifest.read(tmp_path, "any")


def test_an_earlier_format_is_refused_with_its_remedy(tiny: TinyPartition, tmp_path: Path) -> None:
    document = json.loads((tiny.folder / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**document, "format": 3}))
    with pytest.raises(ManifestError, match=r"format '3' is not 6: split .* again with `faasmoe partition`"):
        FunctionManifest.read(tmp_path, tiny.functions[0])


HOSTILE: list[tuple[Callable[[Any, Any], Any], str]] = [
    (lambda document, block: document.update(num_experts=10**15), "experts per token"),
    (lambda document, block: document.update(num_experts=10**30), "num_experts is out of range"),
    (lambda document, block: document.update(num_experts=True), "num_experts is 'True'"),
    (lambda document, block: document.update(num_experts=float("nan")), "num_experts is 'nan'"),
    (lambda document, block: document.update(num_experts_per_tok=6), "6 of 5 experts per token"),
    (lambda document, block: document.update(expert_nbytes=-4096), "expert_nbytes is out of range"),
    (lambda document, block: document.update(expert_nbytes=1 << 40), "do not fill"),
    (lambda document, block: document.update(expert_nbytes=0), "do not fill"),
    (lambda document, block: document.update(dtype=["f32"]), "dtype is"),
    (lambda document, block: document.update(dtype="9" * 5000), "dtype is '99999999999999999999'"),
    (lambda document, block: document.update(gate_up_dtype="bf16"), "'bf16' weights do not fit f32"),
    (lambda document, block: document.update(down_dtype="9" * 5000), "'99999999999999999999' weights do"),
    (lambda document, block: document.update(down_dtype=[]), "down_dtype is '[]'"),
    (lambda document, block: document.update(has_bias=1), "has_bias is '1'"),
    (lambda document, block: document.update(activation=[]), "AttributeError"),
    (lambda document, block: document["activation"].pop("alpha"), "activation has other fields"),
    (lambda document, block: document["activation"].update(beta=1), "activation has other fields"),
    (lambda document, block: document["activation"].update(function=["silu"]), "a field of another type"),
    (lambda document, block: document["activation"].update(function="9" * 5000), "'99999999999999999999'"),
    (lambda document, block: document["activation"].update(gated=None), "a field of another type"),
    (lambda document, block: document["activation"].update(limit=True), "a field of another type"),
    (lambda document, block: document["activation"].update(limit=0), "limit is 0, not above 0"),
    (lambda document, block: document["activation"].update(alpha=float("nan")), "alpha is not a finite"),
    (lambda document, block: document["activation"].update(up_offset=10**400), "up_offset is not a finite"),
    (lambda document, block: document.update(fingerprint=7), "fingerprint is '7'"),
    (lambda document, block: document.update(fingerprint="0" * 65), "fingerprint has 65 characters"),
    (lambda document, block: document.update(dense=[]), "TypeError"),
    (lambda document, block: block.update(nbytes="1" * 10**6), "TypeError"),
    (lambda document, block: block.update(offset=100), "not whole pages"),
    (lambda document, block: block.update(offset=1 << 61), "do not fill"),
    (lambda document, block: block.update(file="/etc/passwd"), "is not in the partition"),
    (lambda document, block: block.update(file="x" * 10**5), "is not in the partition"),
    (lambda document, block: block.update(file="../manifest.json"), "is not in the partition"),
    (lambda document, block: block["experts"].update({"0": [0, 5]}), "not numbers below 5"),
    (lambda document, block: block["experts"].update({"0": [-1, 0]}), "not numbers below 5"),
    (lambda document, block: block["experts"].update({"0": [0.0, 1]}), "not numbers below 5"),
    (lambda document, block: block["experts"].update({"0": [0]}), "zip"),
    (lambda document, block: block["experts"].update({"9": [0]}), "KeyError: '9'"),
    (lambda document, block: block.update(experts={}), "0 experts do not fill"),
    (lambda document, block: block.pop("checksums"), "checksums"),
    (lambda document, block: many_layers(document, block), "too many layers"),
]


def many_layers(document: Any, block: Any) -> None:
    """Tables of all layers and experts would take 2.6 GB."""
    document["num_experts"] = 1 << 15
    for field, value in (("experts", 0), ("checksums", "0" * 16)):
        block[field] = {str(layer): [value] for layer in range(10_000)}
    block["nbytes"] = block["offset"] + 10_000 * document["expert_nbytes"]


@pytest.mark.parametrize(("harm", "problem"), HOSTILE, ids=[problem for _, problem in HOSTILE])
def test_a_hostile_manifest_is_an_error(
    tiny: TinyPartition, tmp_path: Path, harm: Callable[[Any, Any], Any], problem: str
) -> None:
    document = json.loads((tiny.folder / "manifest.json").read_text())
    harm(document, document["blocks"][0])
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ManifestError) as caught:
        FunctionManifest.read(tmp_path, tiny.functions[0])
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_manifest_without_end_is_read_within_bounds(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"")
    with (tmp_path / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    try:
        with pytest.raises(ManifestError, match="has more than 16777216 bytes"):
            FunctionManifest.read(tmp_path, "any")
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()

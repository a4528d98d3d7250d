"""A function reads the same from a manifest as the control plane does."""

from pathlib import Path

import pytest

from control_plane.partition.manifest import Manifest
from functions.contract.manifest import FunctionManifest, ManifestError
from tests.support.tiny_partition import TinyPartition


def test_it_equals_the_control_planes_manifest(tiny: TinyPartition) -> None:
    manifest = Manifest.load(tiny.folder)
    for block in manifest.blocks:
        read = FunctionManifest.read(tiny.folder, block.function)
        for name in ("fingerprint", "dtype", "expert_dtype", "hidden_size", "num_experts", "expert_nbytes"):
            assert getattr(read, name) == getattr(manifest, name)
        assert (read.file, read.nbytes, read.offset) == (block.file, block.nbytes, block.offset)
        assert {layer: tuple(experts) for layer, experts in read.experts.items()} == block.experts
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

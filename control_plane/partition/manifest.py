"""`manifest.json`: what a partition folder holds, and the proof that it is whole.

Everything else in the folder is named here with its size and SHA-256, and the fingerprint covers the
manifest itself: two partitions with the same fingerprint hold the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from control_plane.errors import PartitionError
from control_plane.partition.manifest_schema import check_manifest
from functions.contract.manifest import FORMAT, MANIFEST_FILE


@dataclass(frozen=True)
class PartitionFile:
    """A file of the partition: its path in the folder, its bytes and their SHA-256 (hex)."""

    file: str
    nbytes: int
    sha256: str

    def verify(self, folder: Path) -> None:
        """Raise PartitionError when the file in `folder` is missing or differs."""
        path = folder / self.file
        try:
            size = path.stat().st_size
        except OSError as error:
            raise PartitionError(f"cannot read {path}: {error.strerror}") from error
        if size != self.nbytes:
            raise PartitionError(f"{path} has {size} bytes, the manifest says {self.nbytes}")
        _verify_checksum(path, self.sha256)


@dataclass(frozen=True)
class Block(PartitionFile):
    """The experts of one function: a safetensors file, one page-aligned range of bytes per expert.

    `offset` is where the first expert's bytes start; `experts` maps each layer to its experts, both in
    the order of the file.
    """

    function: str
    offset: int
    experts: Mapping[int, tuple[int, ...]]

    @property
    def num_experts(self) -> int:
        return sum(len(experts) for experts in self.experts.values())

    @property
    def expert_nbytes(self) -> int:
        return (self.nbytes - self.offset) // self.num_experts

    def expert_offset(self, layer: int, expert: int) -> int:
        """The byte in the file at which an expert starts; KeyError when the block does not have it."""
        position = 0
        for block_layer, experts in self.experts.items():
            if block_layer == layer and expert in experts:
                return self.offset + (position + experts.index(expert)) * self.expert_nbytes
            position += len(experts)
        raise KeyError((layer, expert))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Block":
        experts = {int(layer): tuple(experts) for layer, experts in data["experts"].items()}
        return cls(**{**data, "experts": experts})


@dataclass(frozen=True)
class Manifest:
    """A partition of one model.

    `dtype` ("f32" or "bf16") is that of the activations on the wire and of the dense part; when `dense_dtype`
    differs from it, it is "int8", and the dense part's large matrices are packed in that. `expert_dtype`
    ("f32", "bf16" or "int8") is that of the packed experts. `expert_nbytes` is one packed expert, rounded up
    to whole pages. `files` maps config and tokenizer files to their SHA-256.
    """

    name: str
    model_type: str
    dtype: str
    dense_dtype: str
    expert_dtype: str
    hidden_size: int
    intermediate_size: int
    num_experts: int
    num_experts_per_tok: int
    experts_per_function: int
    layers_per_function: int
    moe_layers: tuple[int, ...]
    expert_nbytes: int
    dense: PartitionFile
    files: Mapping[str, str]
    blocks: tuple[Block, ...]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON of all other fields, every file's checksum included."""
        canonical = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def image(self) -> str:
        """The image of this partition's functions, without a registry. It depends on code and weights."""
        return f"faasmoe-expert:{version('faasmoe')}-{self.fingerprint[:12]}"

    def block(self, function: str) -> Block:
        """The block that a function serves; PartitionError when there is no such function."""
        for block in self.blocks:
            if block.function == function:
                return block
        raise PartitionError(f"the partition {self.name} has no function {function}")

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read and validate a partition's manifest; PartitionError says what is wrong with it."""
        path = folder / MANIFEST_FILE
        try:
            data = json.loads(path.read_bytes())
        except OSError as error:
            raise PartitionError(f"{folder} is not a partition: {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise PartitionError(f"{path} is not JSON: {error}") from error
        try:
            check_manifest(data)
        except ValueError as error:
            raise PartitionError(f"{path}: {error}") from error
        manifest = cls._from_json(data)
        if manifest.fingerprint != data["fingerprint"]:
            raise PartitionError(f"{path} was changed: its fingerprint does not match its content")
        return manifest

    def save(self, folder: Path) -> None:
        document = {"fingerprint": self.fingerprint, **self._content()}
        (folder / MANIFEST_FILE).write_text(json.dumps(document, indent=1) + "\n")

    def verify(self, folder: Path, function: str | None = None) -> None:
        """Compare sizes and checksums with the files: all of them, or one function's block.

        Raises PartitionError, which names the first file that is missing or differs.
        """
        if function is not None:
            self.block(function).verify(folder)
            return
        self.verify_dense(folder)
        for block in self.blocks:
            block.verify(folder)

    def verify_dense(self, folder: Path) -> None:
        """The same for all but the blocks: what the control plane loads."""
        for name, sha256 in self.files.items():
            _verify_checksum(folder / name, sha256)
        self.dense.verify(folder)

    def _content(self) -> dict[str, Any]:
        return {"format": FORMAT, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def _from_json(cls, data: Mapping[str, Any]) -> "Manifest":
        fields = {key: value for key, value in data.items() if key not in ("format", "fingerprint")}
        fields["moe_layers"] = tuple(fields["moe_layers"])
        fields["dense"] = PartitionFile(**fields["dense"])
        fields["blocks"] = tuple(Block.from_json(block) for block in fields["blocks"])
        return cls(**fields)


def _verify_checksum(path: Path, sha256: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PartitionError(f"cannot read {path}: {error.strerror}") from error
    if found != sha256:
        raise PartitionError(f"{path} is damaged: its checksum differs from the manifest's")

"""The part of a partition's `manifest.json` that an expert function reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from xxhash import xxh3_64

from functions.kernels.activation import Activation
from functions.kernels.packed_types import fits_activations

MANIFEST_FILE = "manifest.json"
FORMAT = 6
"""The version of the partition format."""
PAGE_NBYTES = 4096
"""Experts in a block file start at multiples of this, so that direct reads can fetch each of them alone."""
ExpertChecksum = xxh3_64
"""The hash of an expert's bytes. It is computed without Python's lock: other threads run meanwhile."""
MAX_MANIFEST_NBYTES = 16 << 20
MAX_EXPERTS = 1 << 15
"""Experts of a layer: an invocation has their numbers as int16."""

MAX_FINGERPRINT = 64
"""Characters of a fingerprint: the hex digits of SHA-256."""
MAX_PATH_LENGTH = 400
MAX_PROBLEM = 200
"""The most characters of an error that quotes the manifest."""

_LARGEST = 1 << 62
_MAX_TABLE = 1 << 22
"""Layers of a block times experts of a layer."""


class ManifestError(Exception):
    """`manifest.json` cannot be read, or does not describe the function's block."""


class StoredExpert(NamedTuple):
    """One expert in a block file."""

    layer: int
    number: int
    """In the layer."""
    checksum: str
    """The hex digest of `ExpertChecksum` over its bytes in the file."""


def format_problem(found: object) -> str | None:
    """What is wrong with a manifest's format; None if it can be read."""
    # Compared as text, since True and 2.0 are equal to numbers.
    if repr(found) == str(FORMAT):
        return None
    return f"format {str(found)[:20]!r} is not {FORMAT}: split the checkpoint again with `faasmoe partition`"


@dataclass(frozen=True)
class FunctionManifest:
    """The model's sizes, and the block of one function.

    A function reads only what it needs, and checks what its own memory and answers depend on; the control
    plane checks the whole manifest.
    """

    fingerprint: str
    dtype: str
    """Dtype of the activations: "f32" or "bf16"."""
    gate_up_dtype: str
    """Type of the packed weights of gate and up (`functions.kernels.packed_types`)."""
    down_dtype: str
    hidden_size: int
    intermediate_size: int
    activation: Activation
    has_bias: bool
    """Whether experts have biases."""
    num_experts: int
    """Experts of a layer, in all blocks."""
    num_experts_per_tok: int
    expert_nbytes: int
    """Bytes of one packed expert, in whole pages."""
    dense_nbytes: int
    """Bytes of the dense part, which the control plane loads."""
    num_blocks: int
    blocks_nbytes: int
    """Bytes of all block files."""
    file: str
    """The block file's path in the partition's folder."""
    nbytes: int
    """Bytes of the block file."""
    offset: int
    """The byte of the block file at which its first expert begins."""
    experts: Sequence[StoredExpert]
    """The block's experts in the order of the block file: by layer, then by number."""

    @classmethod
    def read(cls, partition: Path, function: str) -> "FunctionManifest":
        """Read the manifest in the folder `partition`; raises `ManifestError`."""
        path = partition / MANIFEST_FILE
        try:
            document = _read(path)
            if problem := format_problem(document["format"]):
                raise ManifestError(f"{path}: {problem}")
            block = next((block for block in document["blocks"] if block["function"] == function), None)
            if block is None:
                raise ManifestError(f"{path} has no function {function!r}")
            manifest = cls._from_json(document, block)
            manifest._check()
            return manifest
        except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise ManifestError(f"cannot read {path}: {problem[:MAX_PROBLEM]}") from error

    def is_replaced(self, partition: Path) -> bool:
        """Whether the folder now has the manifest of another partition."""
        try:
            fingerprint = _read(partition / MANIFEST_FILE)["fingerprint"]
        except (LookupError, OSError, RecursionError, TypeError, ValueError):
            return False
        return bool(fingerprint != self.fingerprint)

    @classmethod
    def _from_json(cls, document: Mapping[str, Any], block: Mapping[str, Any]) -> "FunctionManifest":
        return cls(
            fingerprint=document["fingerprint"],
            dtype=document["dtype"],
            gate_up_dtype=document["gate_up_dtype"],
            down_dtype=document["down_dtype"],
            hidden_size=document["hidden_size"],
            intermediate_size=document["intermediate_size"],
            activation=_activation(document["activation"]),
            has_bias=document["has_bias"],
            num_experts=document["num_experts"],
            num_experts_per_tok=document["num_experts_per_tok"],
            expert_nbytes=document["expert_nbytes"],
            dense_nbytes=document["dense"]["nbytes"],
            num_blocks=len(document["blocks"]),
            blocks_nbytes=sum(block["nbytes"] for block in document["blocks"]),
            file=block["file"],
            nbytes=block["nbytes"],
            offset=block["offset"],
            experts=[
                StoredExpert(int(layer), number, checksum)
                for layer, numbers in block["experts"].items()
                for number, checksum in zip(numbers, block["checksums"][layer], strict=True)
            ],
        )

    def _check(self) -> None:
        """Raise ValueError for numbers that are none, that are absurd, or that contradict each other."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in (int, str, bool) and type(value) is not field.type:
                raise ValueError(f"{field.name} is {str(value)[:20]!r}")
            if field.type is int and not 0 <= value <= _LARGEST:
                raise ValueError(f"{field.name} is out of range")
        if len(self.fingerprint) > MAX_FINGERPRINT:
            raise ValueError(f"fingerprint has {len(self.fingerprint)} characters")
        if self.dtype not in ("f32", "bf16"):
            raise ValueError(f"dtype is {self.dtype[:20]!r}")
        for name in (self.gate_up_dtype, self.down_dtype):
            if not fits_activations(name, self.dtype):
                raise ValueError(f"{name[:20]!r} weights do not fit {self.dtype} activations")
        if not 1 <= self.num_experts_per_tok <= self.num_experts <= MAX_EXPERTS:
            raise ValueError(f"{self.num_experts_per_tok} of {self.num_experts} experts per token")
        if not all(type(number) is int and 0 <= number < self.num_experts for _, number, _ in self.experts):
            raise ValueError(f"experts are not numbers below {self.num_experts}")
        if not all(0 <= layer <= _LARGEST for layer, _, _ in self.experts):
            raise ValueError("layers are out of range")
        if len({layer for layer, _, _ in self.experts}) * self.num_experts > _MAX_TABLE:
            raise ValueError("there are too many layers")
        if self.expert_nbytes % PAGE_NBYTES or self.offset % PAGE_NBYTES:
            raise ValueError("experts are not whole pages")
        if self.nbytes != self.offset + len(self.experts) * self.expert_nbytes or not self.experts:
            raise ValueError(f"{len(self.experts)} experts do not fill {self.nbytes} bytes")
        path = Path(self.file)
        if path.is_absolute() or ".." in path.parts or len(self.file) > MAX_PATH_LENGTH:
            raise ValueError(f"{self.file[:80]!r} is not in the partition")


def _activation(found: Mapping[str, Any]) -> Activation:
    """Raises ValueError for what is no activation."""
    if found.keys() != {field.name for field in fields(Activation)}:
        raise ValueError("activation has other fields")
    numbers = [found["alpha"], found["up_offset"], *([] if found["limit"] is None else [found["limit"]])]
    kinds = {type(number) for number in numbers}
    if type(found["function"]) is not str or type(found["gated"]) is not bool or kinds - {int, float}:
        raise ValueError("activation has a field of another type")
    return Activation(**found)


def _read(path: Path) -> Any:
    """The JSON document in a file. Raises OSError, ValueError or RecursionError."""
    with path.open("rb") as file:
        data = file.read(MAX_MANIFEST_NBYTES + 1)
    if len(data) > MAX_MANIFEST_NBYTES:
        raise ValueError(f"has more than {MAX_MANIFEST_NBYTES} bytes")
    return json.loads(data)

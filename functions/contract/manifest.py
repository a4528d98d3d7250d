"""The part of a partition's `manifest.json` that an expert function reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST_FILE = "manifest.json"
FORMAT = 1
"""The version of the partition format."""
PAGE_NBYTES = 4096
"""Experts in a block file start at multiples of this, so that direct reads can fetch each of them alone."""


class ManifestError(Exception):
    """`manifest.json` cannot be read, or does not name the function."""


@dataclass(frozen=True)
class FunctionManifest:
    """The model's sizes, and the block of one function.

    The control plane checks the whole manifest when it loads a partition; a function only reads it.
    """

    fingerprint: str
    dtype: str
    """Dtype of the activations: "f32" or "bf16"."""
    expert_dtype: str
    """Dtype of the packed weights: "f32", "bf16" or "int8"."""
    hidden_size: int
    intermediate_size: int
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
    experts: Mapping[int, Sequence[int]]
    """The block's experts by layer, in the order of the block file."""

    @classmethod
    def read(cls, partition: Path, function: str) -> "FunctionManifest":
        """Read the manifest in the folder `partition`; raises `ManifestError`."""
        path = partition / MANIFEST_FILE
        try:
            document = json.loads(path.read_bytes())
            blocks = document["blocks"]
            block = next((block for block in blocks if block["function"] == function), None)
            if block is None:
                raise ManifestError(f"{path} has no function {function!r}")
            return cls._from_json(document, block)
        except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
            raise ManifestError(f"cannot read {path}: {type(error).__name__}: {error}") from error

    @classmethod
    def _from_json(cls, document: Mapping[str, Any], block: Mapping[str, Any]) -> "FunctionManifest":
        return cls(
            fingerprint=document["fingerprint"],
            dtype=document["dtype"],
            expert_dtype=document["expert_dtype"],
            hidden_size=document["hidden_size"],
            intermediate_size=document["intermediate_size"],
            num_experts=document["num_experts"],
            num_experts_per_tok=document["num_experts_per_tok"],
            expert_nbytes=document["expert_nbytes"],
            dense_nbytes=document["dense"]["nbytes"],
            num_blocks=len(document["blocks"]),
            blocks_nbytes=sum(block["nbytes"] for block in document["blocks"]),
            file=block["file"],
            nbytes=block["nbytes"],
            offset=block["offset"],
            experts={int(layer): experts for layer, experts in block["experts"].items()},
        )

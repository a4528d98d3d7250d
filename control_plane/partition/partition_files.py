"""The files of a partition, as its manifest describes them."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from control_plane.errors import PartitionError
from control_plane.validation import Invalid
from functions.contract.manifest import PAGE_NBYTES

FUNCTION_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""The function names that OpenFaaS accepts: DNS labels."""

_SHA256 = re.compile("[0-9a-f]{64}")
_LARGEST = 2**62

Number = Annotated[int, Meta(ge=0, le=_LARGEST)]
Size = Annotated[int, Meta(ge=1, le=_LARGEST, description="a positive whole number")]
_WHOLE_PAGES = f"a positive multiple of {PAGE_NBYTES}"
PagesNbytes = Annotated[
    int, Meta(ge=PAGE_NBYTES, le=_LARGEST, multiple_of=PAGE_NBYTES, description=_WHOLE_PAGES)
]
Experts = Annotated[tuple[Number, ...], Meta(description="a list of expert numbers")]
ExpertsByLayer = Annotated[
    Mapping[Number, Experts], Meta(description="an object of layer numbers with lists of expert numbers")
]


class PartitionFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the partition: its path relative to the folder, its size in bytes and its SHA-256 (hex)."""

    file: str
    nbytes: Annotated[int, Meta(ge=0, le=_LARGEST, description="a whole number, 0 or more")]
    sha256: str

    def check(self, where: str) -> None:
        """Raise `Invalid` for a path outside the folder, or a checksum that is not SHA-256 in hex."""
        if not {"", ".", ".."}.isdisjoint(self.file.split("/")):
            raise Invalid(where, f"{self.file!r} is not a file in the partition")
        if not _SHA256.fullmatch(self.sha256):
            raise Invalid(where, "sha256 is not 64 hexadecimal digits")

    def verify(self, folder: Path) -> None:
        """Raise PartitionError if the file in `folder` is missing or differs."""
        path = folder / self.file
        try:
            size = path.stat().st_size
        except OSError as error:
            raise PartitionError(f"cannot read {path}: {error.strerror}") from error
        if size != self.nbytes:
            raise PartitionError(f"{path} has {size} bytes, the manifest says {self.nbytes}")
        verify_checksum(path, self.sha256)


class Block(PartitionFile, frozen=True, forbid_unknown_fields=True):
    """The experts of one function: a safetensors file with one page-aligned range of bytes per expert.

    `offset` is the byte at which the first expert starts. `experts` maps each layer to its experts; both are
    in the order of the file.
    """

    function: str
    offset: PagesNbytes
    experts: ExpertsByLayer

    @property
    def num_experts(self) -> int:
        return sum(map(len, self.experts.values()))

    @property
    def expert_nbytes(self) -> int:
        return (self.nbytes - self.offset) // self.num_experts

    def expert_offset(self, layer: int, expert: int) -> int:
        """The byte of the file at which an expert starts. Raises KeyError if it is not in this block."""
        position = 0
        for block_layer, experts in self.experts.items():
            if block_layer == layer and expert in experts:
                return self.offset + (position + experts.index(expert)) * self.expert_nbytes
            position += len(experts)
        raise KeyError((layer, expert))

    def check(self, where: str) -> None:
        """Raise `Invalid` for what a file is refused for, a wrong name, or experts that are out of order."""
        super().check(where)
        if not FUNCTION_NAME.fullmatch(self.function):
            raise Invalid(f"{where}.function", f"{self.function!r} is not a function's name")
        if not is_ascending(list(self.experts)):
            raise Invalid(f"{where}.experts", "its layers are not ascending")
        for layer, experts in self.experts.items():
            if not is_ascending(experts):
                raise Invalid(f"{where}.experts", f"the experts of layer {layer} are not ascending")


def is_ascending(numbers: Sequence[int]) -> bool:
    """Whether there is at least one number, and each is larger than the one before."""
    return len(numbers) > 0 and all(a < b for a, b in pairwise(numbers))


def verify_checksum(path: Path, sha256: str) -> None:
    """Raise PartitionError if a file cannot be read, or has another SHA-256 (hex)."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PartitionError(f"cannot read {path}: {error.strerror}") from error
    if found != sha256:
        raise PartitionError(f"{path} is damaged: its checksum differs from the manifest's")

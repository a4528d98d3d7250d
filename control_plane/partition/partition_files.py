"""The files of a partition, as its manifest describes them."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from control_plane.errors import PartitionError
from control_plane.files import regular_size
from control_plane.validation import MAX_QUOTED, Invalid
from functions.contract.manifest import MAX_EXPERTS, PAGE_NBYTES, ExpertChecksum

FUNCTION_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""The function names that OpenFaaS accepts: DNS labels."""

_READ_NBYTES = 1 << 20
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
ExpertCount = Annotated[
    int, Meta(ge=1, le=MAX_EXPERTS, description=f"a whole number from 1 to {MAX_EXPERTS}")
]
_CHECKSUM = "an object of layer numbers with lists of checksums of 16 hexadecimal digits"
Checksum = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z", description=_CHECKSUM)]
ChecksumsByLayer = Annotated[Mapping[Number, tuple[Checksum, ...]], Meta(description=_CHECKSUM)]


class PartitionFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the partition: its path relative to the folder, its size in bytes and its SHA-256 (hex)."""

    file: str
    nbytes: Annotated[int, Meta(ge=0, le=_LARGEST, description="a whole number, 0 or more")]
    sha256: str

    def check(self, where: str) -> None:
        """Raise `Invalid` for a path outside the folder, or a checksum that is not SHA-256 in hex."""
        if not {"", ".", ".."}.isdisjoint(self.file.split("/")) or not self.file.isprintable():
            raise Invalid(where, f"{self.file[:MAX_QUOTED]!r} is not a file in the partition")
        if not _SHA256.fullmatch(self.sha256):
            raise Invalid(where, "sha256 is not 64 hexadecimal digits")

    def verify(self, folder: Path) -> None:
        """Raise PartitionError if the file in `folder` is missing or differs."""
        path = folder / self.file
        size = regular_size(path)
        if size != self.nbytes:
            raise PartitionError(f"{path} has {size} bytes, the manifest says {self.nbytes}")
        try:
            with path.open("rb") as file:
                found = self._sha256_of(file, path)
        except OSError as error:
            raise PartitionError(f"cannot read {path}: {error.strerror}") from error
        if found != self.sha256:
            raise PartitionError(f"{path} is damaged: its checksum differs from the manifest's")

    def _sha256_of(self, file: BufferedReader, path: Path) -> str:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Block(PartitionFile, frozen=True, forbid_unknown_fields=True):
    """The experts of one function: a safetensors file with one page-aligned range of bytes per expert.

    `offset` is the byte at which the first expert starts. `experts` maps each layer to its experts; both are
    in the order of the file. `checksums` maps each layer to its experts' checksums, in the same order.
    """

    function: str
    offset: PagesNbytes
    experts: ExpertsByLayer
    checksums: ChecksumsByLayer

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
            raise Invalid(f"{where}.function", f"{self.function[:MAX_QUOTED]!r} is not a function's name")
        if not is_ascending(list(self.experts)):
            raise Invalid(f"{where}.experts", "its layers are not ascending")
        for layer, experts in self.experts.items():
            if not is_ascending(experts):
                raise Invalid(f"{where}.experts", f"the experts of layer {layer} are not ascending")
        counts = ({layer: len(each) for layer, each in by.items()} for by in (self.experts, self.checksums))
        if next(counts) != next(counts):
            raise Invalid(f"{where}.checksums", "are not one for each expert")

    def _sha256_of(self, file: BufferedReader, path: Path) -> str:
        """Raises PartitionError for the first expert whose own checksum differs."""
        whole = hashlib.sha256()
        _read(file, self.offset, whole.update)
        for layer, experts in self.experts.items():
            for expert, checksum in zip(experts, self.checksums[layer], strict=True):
                own = ExpertChecksum()
                _read(file, self.expert_nbytes, whole.update, own.update)
                if own.hexdigest() != checksum:
                    raise PartitionError(
                        f"{path} is damaged: the checksum of expert {expert} of layer {layer} differs from "
                        "the manifest's"
                    )
        return whole.hexdigest()


def is_ascending(numbers: Sequence[int]) -> bool:
    """Whether there is at least one number, and each is larger than the one before."""
    return len(numbers) > 0 and all(a < b for a, b in pairwise(numbers))


def verify_checksum(path: Path, sha256: str) -> None:
    """Raise PartitionError if a file of any size cannot be read, or has another SHA-256 (hex)."""
    PartitionFile(path.name, regular_size(path), sha256).verify(path.parent)


def check_inside(folder: Path, files: Iterable[str]) -> None:
    """Raise PartitionError if one of the files is a link, or in one, that leads out of the folder."""
    home = os.path.join(os.path.realpath(folder), "")
    for file in files:
        if not os.path.realpath(folder / file).startswith(home):
            raise PartitionError(f"{folder / file} is a link out of the partition")


def _read(file: BufferedReader, nbytes: int, *users: Callable[[bytes], object]) -> None:
    """Pass the next `nbytes` bytes of the file on, piece by piece, or those up to its end."""
    while nbytes and (data := file.read(min(nbytes, _READ_NBYTES))):
        for use in users:
            use(data)
        nbytes -= len(data)

"""The messages between the control plane and an expert function, as safetensors bytes.

An invocation carries `hidden_states` [T, H], `expert_index` [T, K] int16 (-1: another function's expert) and
`expert_weight` [T, K] float32; its result carries `output` [T, H], one weighted sum per row. Besides the
rows, an invocation can carry a prefetch, and a limit to the weights that the function holds in memory.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from functions.contract.safetensors_codec import (
    Layout,
    WireError,
    buffer_of,
    decode,
    encode,
    header,
    layout_of,
)

WIRE_VERSION = "1"

HEADERS = 4096
"""The headers of invocations that are kept: those of a layer's calls differ only in their numbers of rows."""
MAX_SECONDS = 1e6
"""The longest computing time that a result may report: a larger one would spoil tenants' accounts."""

_NUMBER = re.compile("[0-9]{1,18}")
_KERNEL = re.compile("[a-z0-9_]{1,32}")
_PREFETCH = re.compile("[0-9]{1,9}:[0-9]{1,5}(,[0-9]{1,5})*(;[0-9]{1,9}:[0-9]{1,5}(,[0-9]{1,5})*)*")

Prefetch = Mapping[int, Sequence[int]]
"""The function's experts that are predicted to be called next, by layer, the likeliest first."""


@dataclass(frozen=True)
class Invocation:
    """One function's share of a layer's batch.

    Without rows, it keeps the function awake, and may carry a prefetch.
    """

    layer: int
    model: str
    """The partition's fingerprint."""
    hidden_states: NDArray[Any]
    """[T, H], float32 or the uint16 bits of bf16."""
    expert_index: NDArray[np.int16]
    """[T, K], -1 for another function's expert."""
    expert_weight: NDArray[np.float32]
    """[T, K], the factor of each expert's output."""
    resident_limit: int | None = None
    """The most bytes of expert weights that the function may hold from now on; None changes nothing."""
    prefetch: Prefetch = field(default_factory=dict)

    def encode(self, with_limit: bool = True) -> list[bytes | memoryview]:
        """The request's body, as buffers to be sent one after the other."""
        tensors = {
            "hidden_states": self.hidden_states,
            "expert_index": self.expert_index,
            "expert_weight": self.expert_weight,
        }
        prefetch = _prefetch_text(self.prefetch) if self.prefetch else ""
        limit = self.resident_limit if with_limit else None
        head, order = _invocation_header(layout_of(tensors), self.layer, self.model, limit, prefetch)
        buffers = [buffer_of(tensor) for tensor in tensors.values()]
        return [head, *(buffers[number] for number in order)]

    @classmethod
    def decode(cls, body: bytes | bytearray) -> "Invocation":
        """Read and check a request's body; raises `WireError`."""
        message = decode(body)
        version = message.metadata.get("wire")
        if version != WIRE_VERSION:
            raise WireError(f"wire version {version!r}, this function speaks {WIRE_VERSION}")
        limit = message.metadata.get("resident_limit")
        invocation = cls(
            layer=_number(message.metadata, "layer"),
            model=message.metadata.get("model", ""),
            hidden_states=message.matrix("hidden_states"),
            expert_index=message.matrix("expert_index", np.dtype("<i2")),
            expert_weight=message.matrix("expert_weight", np.dtype("<f4")),
            resident_limit=None if limit is None else _number(message.metadata, "resident_limit"),
            prefetch=_prefetch_of(message.metadata.get("prefetch", "")),
        )
        invocation._check_shapes()
        return invocation

    def _check_shapes(self) -> None:
        rows, index_shape = len(self.hidden_states), self.expert_index.shape
        if index_shape[0] != rows or index_shape != self.expert_weight.shape:
            shapes = [list(t.shape) for t in (self.hidden_states, self.expert_index, self.expert_weight)]
            raise WireError(f"shapes of hidden_states, expert_index, expert_weight do not agree: {shapes}")
        if self.expert_index.size and self.expert_index.min() < -1:
            raise WireError(f"expert_index has {self.expert_index.min()}, less than -1")


@dataclass(frozen=True)
class ResidencyReport:
    """The weights that a function holds in memory. Counts are since its process started."""

    limit_bytes: int = 0
    """The most bytes of expert weights that the function may hold."""
    resident_experts: int = 0
    """Experts in memory now."""
    resident_bytes: int = 0
    """Bytes of the experts in memory now."""
    overhead_bytes: int = 0
    """Bytes of the process's own memory, without expert weights."""
    read_bytes: int = 0
    """Bytes of weights read from disk."""
    prefetched_experts: int = 0
    """Experts read before they were called."""
    prefetch_hits: int = 0
    """Prefetched experts that were called before they were dropped."""
    prefetch_wasted_bytes: int = 0
    """Bytes of prefetched experts that were dropped without having been called."""
    evicted_for_room: int = 0
    """Experts dropped to make room for others."""
    evicted_for_limit: int = 0
    """Experts dropped because the limit was lowered."""
    evicted_for_idleness: int = 0
    """Experts dropped because the function was idle."""

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "ResidencyReport":
        """Read the report from a result's metadata; raises `WireError`."""
        return cls(**{name: _number(metadata, name) for name in REPORTED})

    def to_metadata(self) -> dict[str, str]:
        """The inverse of `from_metadata`."""
        return {name: str(count) for name, count in vars(self).items()}


REPORTED = tuple(report_field.name for report_field in fields(ResidencyReport))
"""The names of the counts in a `ResidencyReport`."""


@dataclass(frozen=True)
class InvocationResult:
    """A function's answer to an invocation."""

    output: NDArray[Any]
    """[T, H] in the dtype of the invocation's hidden states."""
    instance: str
    """A random name of the function's process: a new one means a cold start."""
    address: str
    """host:port at which the function itself was reached, behind any gateway."""
    seconds: float
    """Time that the function took, without transport."""
    cold_experts: int
    """Experts of this call that were not in memory when it began."""
    residency: ResidencyReport | None = None
    """None if nothing has changed since the last report over the same connection.

    A gateway's connections have several callers, of which each gets a part of the reports.
    """
    kernel: str | None = None
    """The function's kernel. It is sent with a report; older functions do not name it."""

    def encode(self) -> list[bytes | memoryview]:
        """The response's body, as buffers to be sent one after the other."""
        return encode(
            {"output": self.output},
            {
                "instance": self.instance,
                "address": self.address,
                "seconds": f"{self.seconds:.6f}",
                "cold_experts": str(self.cold_experts),
                **({} if self.residency is None else self.residency.to_metadata()),
                **({} if self.residency is None or self.kernel is None else {"kernel": self.kernel}),
            },
        )

    @classmethod
    def decode(cls, body: bytes | bytearray) -> "InvocationResult":
        """Read a response's body; raises `WireError`."""
        message = decode(body)
        output = message.matrix("output")
        metadata = message.metadata
        try:
            return cls(
                output=output,
                instance=metadata["instance"],
                address=metadata["address"],
                seconds=_seconds(metadata["seconds"]),
                cold_experts=_number(metadata, "cold_experts"),
                residency=(
                    None if metadata.keys().isdisjoint(REPORTED) else ResidencyReport.from_metadata(metadata)
                ),
                kernel=_kernel(metadata),
            )
        except (KeyError, ValueError) as error:
            raise WireError(f"metadata of the answer: {error}") from None


@lru_cache(HEADERS)
def _invocation_header(
    layout: Layout, layer: int, model: str, limit: int | None, prefetch: str
) -> tuple[bytes, list[int]]:
    metadata = {"layer": str(layer), "model": model, "wire": WIRE_VERSION}
    if limit is not None:
        metadata["resident_limit"] = str(limit)
    if prefetch:
        metadata["prefetch"] = prefetch
    return header(layout, metadata)


def _number(metadata: Mapping[str, str], name: str) -> int:
    text = metadata.get(name, "")
    if not _NUMBER.fullmatch(text):
        raise WireError(f"metadata {name!r} is {text!r}, not a number")
    return int(text)


def _kernel(metadata: Mapping[str, str]) -> str | None:
    name = metadata.get("kernel")
    if name is not None and not _KERNEL.fullmatch(name):
        raise WireError(f"metadata 'kernel' is {name[:80]!r}, not a name")
    return name


def _prefetch_text(prefetch: Prefetch) -> str:
    """ "5:1,2;6:4" for experts 1 and 2 of layer 5, and 4 of layer 6."""
    return ";".join(f"{layer}:{','.join(map(str, experts))}" for layer, experts in prefetch.items())


def _prefetch_of(text: str) -> dict[int, list[int]]:
    """The inverse of `_prefetch_text`; raises `WireError`."""
    if text and not _PREFETCH.fullmatch(text):
        raise WireError(f"metadata 'prefetch' is {text[:80]!r}, not layers with experts")
    layers = (part.split(":") for part in text.split(";") if part)
    return {int(layer): [int(expert) for expert in experts.split(",")] for layer, experts in layers}


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < MAX_SECONDS:
        raise ValueError(f"seconds: {text}")
    return seconds

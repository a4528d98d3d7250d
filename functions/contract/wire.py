"""What travels between the control plane and an expert function: safetensors bytes.

The layout is that of https://github.com/huggingface/safetensors: eight bytes of header length, a JSON
header, the tensors. It is written here, not by that library, because a message needs its metadata back,
bf16 without torch, and no copy of a tensor on the way in.

An invocation carries `hidden_states` [T, H], `expert_index` [T, K] int16 (-1: not this function's) and
`expert_weight` [T, K] float32; its result carries `output` [T, H], one weighted sum per row. Beside the rows,
an invocation can tell which experts are likely next, and how many bytes of weights the function may hold.
"""

import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

import numpy as np

WIRE_VERSION = "1"
CONTENT_TYPE = "application/vnd.safetensors"

MAX_HEADER_BYTES = 65536
MAX_SECONDS = 1e6
"""No invocation takes longer; whoever says so would spoil the accounts."""

# bf16 has no NumPy type: its 16 bits travel as uint16, which no message uses for anything else.
_NUMPY_BY_NAME: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "BF16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
}
_NUMBER = re.compile("[0-9]{1,18}")
_PREFETCH = re.compile("[0-9]{1,9}:[0-9]{1,5}(,[0-9]{1,5})*(;[0-9]{1,9}:[0-9]{1,5}(,[0-9]{1,5})*)*")
_NAME_BY_NUMPY = {dtype: name for name, dtype in _NUMPY_BY_NAME.items()}


class WireError(ValueError):
    """The bytes are not a message of this contract."""


@dataclass(frozen=True)
class Message:
    """Named tensors and string metadata. Decoded tensors are views of the received bytes."""

    tensors: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]


Prefetch = Mapping[int, Sequence[int]]
"""Layers, and those of a function's experts there that are likely to be called next, the likeliest first."""


@dataclass(frozen=True)
class Invocation:
    """The rows that one function gets of one layer's batch; none, if it is for its prefetch alone."""

    layer: int
    model: str
    hidden_states: np.ndarray
    expert_index: np.ndarray
    expert_weight: np.ndarray
    resident_limit: int | None = None
    """The most bytes of expert weights that the function may hold from now on; None changes nothing."""
    prefetch: Prefetch = field(default_factory=dict)

    def encode(self) -> list[bytes | memoryview]:
        """The request's body, as buffers to be sent one after the other."""
        metadata = {"layer": str(self.layer), "model": self.model, "wire": WIRE_VERSION}
        if self.resident_limit is not None:
            metadata["resident_limit"] = str(self.resident_limit)
        if self.prefetch:
            metadata["prefetch"] = _prefetch_text(self.prefetch)
        return encode(
            {
                "hidden_states": self.hidden_states,
                "expert_index": self.expert_index,
                "expert_weight": self.expert_weight,
            },
            metadata,
        )

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
            hidden_states=_tensor(message, "hidden_states", None),
            expert_index=_tensor(message, "expert_index", np.dtype("<i2")),
            expert_weight=_tensor(message, "expert_weight", np.dtype("<f4")),
            resident_limit=None if limit is None else _number(message.metadata, "resident_limit"),
            prefetch=_prefetch_of(message.metadata.get("prefetch", "")),
        )
        invocation._check_shapes()
        return invocation

    def _check_shapes(self) -> None:
        rows, index_shape = len(self.hidden_states), self.expert_index.shape
        empty = rows == 0 and not self.prefetch
        if empty or index_shape[0] != rows or index_shape != self.expert_weight.shape:
            shapes = [list(t.shape) for t in (self.hidden_states, self.expert_index, self.expert_weight)]
            raise WireError(f"shapes of hidden_states, expert_index, expert_weight do not agree: {shapes}")
        if self.expert_index.size and self.expert_index.min() < -1:
            raise WireError(f"expert_index has {self.expert_index.min()}, less than -1")


@dataclass(frozen=True)
class ResidencyReport:
    """What a function says of the weights that it holds. Counts are since its process started."""

    limit_bytes: int = 0
    """The most bytes of expert weights that it may hold."""
    resident_experts: int = 0
    resident_bytes: int = 0
    overhead_bytes: int = 0
    """The process's own memory, beside expert weights."""
    read_bytes: int = 0
    """From disk."""
    prefetched_experts: int = 0
    prefetch_hits: int = 0
    """Prefetched experts that were called before they were dropped."""
    prefetch_wasted_bytes: int = 0
    """Read ahead, and dropped without having been called."""
    evicted_for_room: int = 0
    """Experts that made room for others."""
    evicted_for_limit: int = 0
    """Experts dropped because the limit was lowered."""
    evicted_for_idleness: int = 0
    """Experts dropped because nobody called."""

    def to_json(self) -> dict[str, int]:
        """Field by field."""
        return asdict(self)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "ResidencyReport":
        """Read it from an answer's metadata; raises `WireError`."""
        return cls(**{name: _number(metadata, name) for name in _REPORTED})


_REPORTED = tuple(report_field.name for report_field in fields(ResidencyReport))


@dataclass(frozen=True)
class InvocationResult:
    """A function's answer, and what it says about itself."""

    output: np.ndarray
    """[T, H] in the model's dtype."""
    instance: str
    """Changes whenever the function's process is a new one: how a cold start is seen."""
    address: str
    """host:port at which the function itself was reached, behind any gateway."""
    seconds: float
    cold_experts: int
    """Experts of this call that had to be waited for."""
    residency: ResidencyReport = field(default_factory=ResidencyReport)

    def encode(self) -> list[bytes | memoryview]:
        """The answer's body."""
        return encode(
            {"output": self.output},
            {
                "instance": self.instance,
                "address": self.address,
                "seconds": f"{self.seconds:.6f}",
                "cold_experts": str(self.cold_experts),
                **{name: str(getattr(self.residency, name)) for name in _REPORTED},
            },
        )

    @classmethod
    def decode(cls, body: bytes | bytearray) -> "InvocationResult":
        """Read an answer's body; raises `WireError`."""
        message = decode(body)
        output = _tensor(message, "output", None)
        metadata = message.metadata
        try:
            return cls(
                output=output,
                instance=metadata["instance"],
                address=metadata["address"],
                seconds=_seconds(metadata["seconds"]),
                cold_experts=_number(metadata, "cold_experts"),
                residency=ResidencyReport.from_metadata(metadata),
            )
        except (KeyError, ValueError) as error:
            raise WireError(f"metadata of the answer: {error}") from None


def _number(metadata: Mapping[str, str], name: str) -> int:
    text = metadata.get(name, "")
    if not _NUMBER.fullmatch(text):
        raise WireError(f"metadata {name!r} is {text!r}, not a number")
    return int(text)


def _prefetch_text(prefetch: Prefetch) -> str:
    """ "5:1,2;6:4": experts 1 and 2 of layer 5, and 4 of layer 6."""
    return ";".join(f"{layer}:{','.join(map(str, experts))}" for layer, experts in prefetch.items())


def _prefetch_of(text: str) -> dict[int, list[int]]:
    """The inverse of `_prefetch_text`."""
    if text and not _PREFETCH.fullmatch(text):
        raise WireError(f"metadata 'prefetch' is {text[:80]!r}, not layers with experts")
    layers = (part.split(":") for part in text.split(";") if part)
    return {int(layer): [int(expert) for expert in experts.split(",")] for layer, experts in layers}


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < MAX_SECONDS:
        raise ValueError(f"seconds: {text}")
    return seconds


def encode(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """Tensors and metadata as safetensors, in buffers to be sent one after the other; copies no tensor."""
    # Widest type first, as safetensors itself does, so that every tensor is aligned to its type.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        dtype = _NAME_BY_NUMPY[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    buffers = (np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data for _, tensor in ordered)
    return [struct.pack("<Q", len(text)) + text, *buffers]


def decode(body: bytes | bytearray) -> Message:
    """Read a message; raises `WireError` for anything that is not exactly one."""
    if len(body) < 8:
        raise WireError("shorter than a safetensors header")
    (length,) = struct.unpack_from("<Q", body)
    if length > min(MAX_HEADER_BYTES, len(body) - 8):
        raise WireError(f"header of {length} bytes in a body of {len(body)}")
    try:
        header = json.loads(body[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        tensors, end = _views(body, 8 + length, header)
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise WireError(f"not a safetensors message: {error}") from None
    if end != len(body):
        raise WireError(f"the tensors take {end} bytes of a body of {len(body)}")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WireError("metadata is not a map of strings")
    return Message(tensors, metadata)


def _views(body: bytes | bytearray, data_start: int, header: dict) -> tuple[dict[str, np.ndarray], int]:
    """The tensors as views of `body`, which have to follow each other without a gap, and where they end."""
    tensors = {}
    position = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype = _NUMPY_BY_NAME[entry["dtype"]]
        shape, (start, end) = entry["shape"], entry["data_offsets"]
        # type() and not isinstance(): JSON's true is an int to the latter.
        if type(shape) is not list or any(type(size) is not int or size < 0 for size in (*shape, start, end)):
            raise WireError(f"shape and data_offsets of {name} are {shape}, {[start, end]}")
        count = math.prod(shape)
        if start != position or end - start != count * dtype.itemsize:
            raise WireError(f"data_offsets of {name} are {start}, {end} for {entry['dtype']} {shape}")
        tensors[name] = np.frombuffer(body, dtype, count, data_start + start).reshape(shape)
        position = end
    return tensors, data_start + position


def _tensor(message: Message, name: str, dtype: np.dtype | None) -> np.ndarray:
    tensor = message.tensors.get(name)
    if tensor is None:
        raise WireError(f"tensor {name!r} is missing")
    if tensor.ndim != 2 or (dtype is not None and tensor.dtype != dtype):
        raise WireError(f"tensor {name!r} is {_NAME_BY_NUMPY[tensor.dtype]} {list(tensor.shape)}")
    return tensor

"""Writes GGUF files for tests, with the library of llama.cpp."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from numpy.typing import NDArray

from bench.support.gguf.writer import add_metadata

Kind: Any = gguf.GGMLQuantizationType
Float32 = NDArray[np.float32]

_HALVES = {"Q8_0": (0, 2), "Q4_0": (0, 2), "Q4_1": (0, 4), "Q5_0": (0, 2), "Q5_1": (0, 4), "Q2_K": (80, 84)}
_HALVES |= {"Q3_K": (108, 110), "Q4_K": (0, 4), "Q5_K": (0, 4), "Q6_K": (208, 210), "IQ4_NL": (0, 2)}
_HALVES |= {"IQ4_XS": (0, 2)}


class Stored(NamedTuple):
    """A tensor as it is in a file."""

    kind: Any
    data: NDArray[Any]
    """The values, or the bytes of blocks, with the shape of the values but for the last dimension."""

    @property
    def values(self) -> Float32:
        return np.asarray(gguf.dequantize(self.data, self.kind), np.float32)


def plain(values: Float32) -> Stored:
    return Stored(Kind.F32, np.ascontiguousarray(values, np.float32))


def quantised(values: Float32, kind: str) -> Stored:
    """Values in a type that the library can write."""
    return Stored(Kind[kind], gguf.quantize(np.ascontiguousarray(values), Kind[kind]))


def random_blocks(
    kind: str, shape: tuple[int, ...], random: np.random.Generator, scale: float = 0.01
) -> Stored:
    """Blocks of any bits, but with scales of about that size."""
    number, nbytes = gguf.GGML_QUANT_SIZES[Kind[kind]]
    blocks = random.integers(0, 256, (*shape[:-1], shape[-1] // number, nbytes), dtype=np.uint8)
    if kind == "MXFP4":
        blocks[..., 0] = random.integers(115, 122, blocks.shape[:-1])
    else:
        start, stop = _HALVES[kind]
        units = random.normal(size=(*blocks.shape[:-1], (stop - start) // 2)) * scale
        blocks[..., start:stop] = units.astype(np.float16).view(np.uint8)
    return Stored(Kind[kind], blocks.reshape(*shape[:-1], -1))


def write_gguf(
    path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, Stored]
) -> Path:
    """Write a file. Keys of the metadata without a dot before their last part are the model's own."""
    writer = gguf.GGUFWriter(path, architecture)
    add_metadata(writer, architecture, metadata)
    for name, stored in tensors.items():
        data = np.ascontiguousarray(stored.data)
        writer.add_tensor(name, data, raw_dtype=None if stored.kind == Kind.F32 else stored.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def split(file: Path, folder: Path, count: int) -> list[Path]:
    """Write a file's tensors into several, as llama.cpp splits models. Returns their paths."""
    folder.mkdir()
    reader = gguf.GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    paths = []
    for number in range(count):
        path = folder / f"{file.stem}-{number + 1:05}-of-{count:05}.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        if number:
            # The later ones have no metadata besides.
            writer.kv_data = [{}]
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        if number == 0:
            own = {
                name: field.contents()
                for name, field in reader.fields.items()
                if not name.startswith("GGUF.") and name != "general.architecture"
            }
            add_metadata(
                writer,
                architecture,
                {name.removeprefix(f"{architecture}."): value for name, value in own.items()},
            )
        for tensor in reader.tensors[number::count]:
            kind = None if tensor.tensor_type == Kind.F32 else tensor.tensor_type
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths

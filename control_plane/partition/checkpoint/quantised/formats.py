"""Which tensors of a quantised checkpoint are which matrix: a reader for each `quant_method` of config.json.

The names, shapes and dtypes of the tensors tell how each matrix is stored, so modules that are left out of
quantisation need no attention. config.json is asked only for what they do not tell.
"""

import reprlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from control_plane.errors import PartitionError, UnsupportedModel
from control_plane.partition.checkpoint.quantised.fp4 import Fp4Tensor
from control_plane.partition.checkpoint.quantised.packed_integers import (
    BITS,
    GptqVariant,
    awq,
    gptq,
    pack_quantised,
)
from control_plane.partition.checkpoint.quantised.parts import SCALES, Parts
from control_plane.partition.checkpoint.quantised.scaled import ScaledTensor
from control_plane.partition.checkpoint.tensors.safetensors_file import StoredTensor, unsupported
from control_plane.partition.checkpoint.tensors.tensor import Tensor
from control_plane.partition.checkpoint.tensors.views import transposed
from control_plane.validation import Invalid, convert

_Block = Annotated[int, Meta(ge=1, le=1 << 20)]
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_BLOCK = (128, 128)
_MX_GROUP = 32
_ACTIVATION_SCALES = (
    "activation_scale",
    "input_scale",
    "output_scale",
    "input_global_scale",
    "input_zero_point",
)


class _Weights(Struct, frozen=True):
    block_structure: tuple[_Block, _Block] | str | None = None


class _Group(Struct, frozen=True):
    weights: _Weights | None = None


class Quantisation(Struct, frozen=True):
    """The keys of `quantization_config` that are read."""

    quant_method: str
    weight_block_size: tuple[_Block, _Block] | None = None
    bits: int | None = None
    sym: bool = True
    version: str | None = None
    format: str | None = None
    checkpoint_format: str | None = None
    zero_point: bool = True
    config_groups: dict[str, _Group] = {}

    @property
    def block(self) -> tuple[int, int]:
        """The rows and columns of codes that share a scale, where scales are in blocks."""
        groups = (group.weights.block_structure for group in self.config_groups.values() if group.weights)
        stated = [self.weight_block_size, *groups]
        return next((block for block in stated if isinstance(block, tuple)), _BLOCK)

    @property
    def integer_bits(self) -> int:
        """The bits of AWQ's and GPTQ's weights."""
        return 4 if self.bits is None else self.bits


def quantisation_of(config: Mapping[str, Any]) -> Quantisation | None:
    """How the checkpoint of a config.json is quantised; None if it is not.

    Raises PartitionError, or its UnsupportedModel for a format that cannot be read.
    """
    text = config.get("text_config")
    found = config.get("quantization_config") or (
        text.get("quantization_config") if isinstance(text, dict) else None
    )
    if not found:
        return None
    try:
        read = convert(found, Quantisation)
    except Invalid as error:
        raise PartitionError(f"config.json: quantization_config.{error}") from error
    if read.quant_method not in _READERS:
        method, methods = reprlib.repr(read.quant_method), ", ".join(_READERS)
        raise UnsupportedModel(f"checkpoints of quant_method {method} are not supported, only of {methods}")
    return read


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the unquantised checkpoint."""
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    if isinstance(text := config.get("text_config"), dict):
        plain["text_config"] = {key: value for key, value in text.items() if key != "quantization_config"}
    return plain


def dequantised(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of the unquantised checkpoint, by name. They are read from those of the quantised one.

    Raises PartitionError for tensors that do not fit together, or its UnsupportedModel for a form or a dtype
    that cannot be read.
    """
    quantisation = quantisation_of(config)
    parts, made = Parts(dict(tensors)), {}
    if quantisation is not None:
        read, dtype = _READERS[quantisation.quant_method], _dtype(config)
        for name in sorted(tensors):
            if name in parts.left and (tensor := read(name, parts, dtype, quantisation)):
                made[tensor.name] = tensor
    for tensor in parts.left.values():
        if not tensor.is_plain:
            raise unsupported(tensor)
        if tensor.name in made:
            raise PartitionError(f"{tensor.path}: {tensor.name} is there both quantised and not")
    # In the order of the names, as shards may have them in any.
    return {name: (made | parts.left)[name] for name in sorted(made | parts.left)}


def _dtype(config: Mapping[str, Any]) -> str:
    """The dtype in which the model computes."""
    text = config.get("text_config")
    for each in (config, text if isinstance(text, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            if (name := each.get(key)) in _DTYPES:
                return _DTYPES[name]
    return "BF16"


_Reader = Callable[[str, Parts, str, Quantisation], Tensor | None]


def _fp8(name: str, parts: Parts, dtype: str, quantisation: Quantisation) -> Tensor | None:
    """DeepSeek's: codes under the name of the matrix, scales beside them. Experts may have four bits."""
    tensor = parts.left[name]
    if tensor.dtype not in ("F8_E4M3", "I8"):
        return None
    module = name.rpartition(".")[0]
    beside = [f"{name}_scale_inv", f"{name}_scale"]
    if name.endswith(".weight"):
        beside += [f"{module}.scale", f"{module}.qscale_weight"]
    scales = _scales(name, parts, *beside)
    codes = parts.take(name, ("F8_E4M3", "I8"))
    parts.drop(*(f"{module}.{each}" for each in _ACTIVATION_SCALES), f"{module}.qscale_act")
    parts.drop(f"{name}_activation_scale")
    if codes.dtype == "I8":
        return Fp4Tensor.make(name, dtype, codes, scales, _MX_GROUP)
    return ScaledTensor.make(name, dtype, codes, scales, quantisation.block)


def _mxfp4(name: str, parts: Parts, dtype: str, quantisation: Quantisation) -> Tensor | None:
    """gpt-oss's: `NAME_blocks` and `NAME_scales`, of the transposed matrices of all experts."""
    if not name.endswith("_blocks"):
        return None
    matrix = name.removesuffix("_blocks")
    codes = parts.take(name, ("U8",))
    scales = parts.take(f"{matrix}_scales", ("U8",))
    return transposed(Fp4Tensor.make(matrix, dtype, codes, scales, _MX_GROUP))


def _compressed_tensors(name: str, parts: Parts, dtype: str, quantisation: Quantisation) -> Tensor | None:
    module, _, kind = name.rpartition(".")
    tensor = parts.left[name]
    if kind == "weight_packed":
        parts.drop(*(f"{module}.{each}" for each in _ACTIVATION_SCALES))
        if tensor.dtype == "I32":
            return pack_quantised(f"{module}.weight", dtype, module, parts)
        return _compressed_fp4(module, parts, dtype)
    if kind == "weight" and tensor.dtype in ("F8_E4M3", "I8"):
        if zero := parts.find(f"{module}.weight_zero_point"):
            raise UnsupportedModel(
                f"{tensor.path}: {zero}: eight-bit weights with zero points are not supported"
            )
        scales = _scales(name, parts, f"{module}.weight_scale")
        parts.drop(*(f"{module}.{each}" for each in _ACTIVATION_SCALES))
        return ScaledTensor.make(name, dtype, parts.take(name, (tensor.dtype,)), scales, quantisation.block)
    return None


def _compressed_fp4(module: str, parts: Parts, dtype: str) -> Tensor:
    """nvfp4, or mxfp4 where there is no scale of the whole matrix."""
    codes = parts.take(f"{module}.weight_packed", ("U8",))
    divisor = None
    if parts.find(name := f"{module}.weight_global_scale"):
        divisor = parts.take(name, ("F32",))
        if divisor.size != 1:
            raise PartitionError(f"{divisor.path}: {name} is {list(divisor.shape)}, not one number")
    scales = parts.take(f"{module}.weight_scale", ("U8", "F8_E8M0") if divisor is None else ("F8_E4M3",))
    group_size = _MX_GROUP if divisor is None else _MX_GROUP // 2
    return Fp4Tensor.make(f"{module}.weight", dtype, codes, scales, group_size, divisor)


def _awq(name: str, parts: Parts, dtype: str, quantisation: Quantisation) -> Tensor | None:
    version = (quantisation.version or "gemm").lower()
    if version != "gemm" or quantisation.integer_bits != 4 or not quantisation.zero_point:
        raise UnsupportedModel(
            "of AWQ checkpoints, only those of version gemm, with zero points and 4 bits, are supported"
        )
    module = name.removesuffix(".qweight")
    return awq(f"{module}.weight", dtype, module, parts) if module != name else None


def _gptq(name: str, parts: Parts, dtype: str, quantisation: Quantisation) -> Tensor | None:
    version = (quantisation.checkpoint_format or quantisation.format or "gptq").lower()
    if version not in _GPTQ_OFFSETS or quantisation.integer_bits not in BITS:
        raise UnsupportedModel(
            "of GPTQ checkpoints, only the formats gptq and gptq_v2 with 4 or 8 bits are supported"
        )
    module = name.removesuffix(".qweight")
    if module == name:
        return None
    variant = GptqVariant(quantisation.integer_bits, quantisation.sym, _GPTQ_OFFSETS[version])
    return gptq(f"{module}.weight", dtype, module, parts, variant)


def _scales(name: str, parts: Parts, *candidates: str) -> StoredTensor:
    """The scales of codes, by one of these names."""
    return parts.take(parts.find(*candidates) or candidates[0], (*SCALES, "F8_E8M0", "U8"))


_GPTQ_OFFSETS = {"gptq": 1, "gptq_v2": 0}
"""What is added to the stored zeros, by the version of the format."""
_READERS: dict[str, _Reader] = {
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "compressed-tensors": _compressed_tensors,
    "awq": _awq,
    "gptq": _gptq,
}

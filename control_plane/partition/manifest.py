"""`manifest.json`: names every other file of a partition folder, with its size and SHA-256.

The fingerprint covers all fields of the manifest: two partitions with the same one hold the same bytes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct, to_builtins
from msgspec.structs import asdict

from control_plane.errors import PartitionError
from control_plane.files import read_json_object
from control_plane.partition.model.architecture import ActivationEntry, Way
from control_plane.partition.model.program import Program
from control_plane.partition.partition_files import (
    Block,
    ExpertCount,
    Number,
    PagesNbytes,
    PartitionFile,
    Size,
    check_inside,
    is_ascending,
    verify_checksum,
)
from control_plane.partition.recipes import DenseTypes
from control_plane.validation import MAX_QUOTED, Invalid, convert
from functions.contract.manifest import (
    FORMAT,
    MANIFEST_FILE,
    MAX_MANIFEST_NBYTES,
    PAGE_NBYTES,
    format_problem,
)
from functions.kernels.packed_expert import ExpertShape
from functions.kernels.packed_types import fits_activations

ModuleName = Annotated[str, Meta(max_length=200)]
FloatDtype = Annotated[str, Meta(pattern=r"^(f32|bf16)\Z", description="f32 or bf16")]


class Manifest(Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """A partition of one model.

    `dtype` ("f32" or "bf16") is the dtype of the activations on the wire, and of weights that are not packed.
    `dense_dtypes`, `gate_up_dtype` and `down_dtype` are the types of the packed matrices of the dense part
    and of the experts: `dtype`, or a quantised type. `has_bias` says whether experts have biases, which are
    float32. `expert_nbytes` is the size of one packed expert, rounded up to whole pages. `files` maps config
    and tokenizer files to their SHA-256.
    """

    name: str
    model_type: str
    dtype: FloatDtype
    dense_dtypes: DenseTypes
    gate_up_dtype: str
    down_dtype: str
    hidden_size: Size
    intermediate_size: Size
    activation: ActivationEntry
    has_bias: bool
    num_experts: ExpertCount
    num_experts_per_tok: ExpertCount
    experts_per_function: Size
    layers_per_function: Size
    moe_layers: tuple[Number, ...]
    experts: tuple[ModuleName, ...]
    """The names of the experts' modules in transformers' model, one for each of `moe_layers`."""
    way: Way
    chunks_prompts: bool
    """Whether a prompt can be computed in parts, by that way."""
    program: Program | None
    """What the dense part computes, for the way "program"."""
    expert_nbytes: PagesNbytes
    dense: PartitionFile
    files: Mapping[str, str]
    blocks: tuple[Block, ...]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON of all other fields, the checksums of all files among them."""
        canonical = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def expert_shape(self) -> ExpertShape:
        """The sizes of an expert. Raises ValueError for a type or an activation that does not exist."""
        return ExpertShape(
            self.hidden_size,
            self.intermediate_size,
            self.gate_up_dtype,
            self.down_dtype,
            self.activation.activation,
            self.has_bias,
        )

    @property
    def image(self) -> str:
        """The name of the functions' image, without a registry. It changes with the code and the weights."""
        return f"faasmoe-expert:{version('faasmoe')}-{self.fingerprint[:12]}"

    def block(self, function: str) -> Block:
        """The block that a function serves. Raises PartitionError if there is no such function."""
        for block in self.blocks:
            if block.function == function:
                return block
        raise PartitionError(f"the partition {self.name} has no function {function}")

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read and check a partition's manifest. Raises `PartitionError`, which names the wrong field."""
        path = folder / MANIFEST_FILE
        if not path.exists():
            raise PartitionError(f"{folder} is not a partition: {path}: No such file or directory")
        data = read_json_object(path, MAX_MANIFEST_NBYTES)
        written_format, fingerprint = data.pop("format", None), data.pop("fingerprint", None)
        if problem := format_problem(written_format):
            raise PartitionError(f"{path}: {problem}")
        try:
            manifest = convert(data, cls)
            _check(manifest)
        except Invalid as error:
            raise PartitionError(f"{path}: {error}") from error
        if manifest.fingerprint != fingerprint:
            raise PartitionError(f"{path} was changed: its fingerprint does not match its content")
        check_inside(
            folder, [manifest.dense.file, *manifest.files, *(block.file for block in manifest.blocks)]
        )
        return manifest

    def json(self) -> bytes:
        """The content of `manifest.json`."""
        document = {"fingerprint": self.fingerprint, **self._content()}
        return (json.dumps(document, indent=1) + "\n").encode()

    def save(self, folder: Path) -> None:
        (folder / MANIFEST_FILE).write_bytes(self.json())

    def verify(self, folder: Path, function: str | None = None) -> None:
        """Compare sizes and checksums with the files: all files, or the block of one function.

        Raises PartitionError, which names the first file that is missing or differs.
        """
        if function is not None:
            self.block(function).verify(folder)
            return
        self.verify_dense(folder)
        for block in self.blocks:
            block.verify(folder)

    def verify_dense(self, folder: Path) -> None:
        """Like `verify`, for the files that the control plane loads: all but the blocks."""
        for name, sha256 in self.files.items():
            verify_checksum(folder / name, sha256)
        self.dense.verify(folder)

    def _content(self) -> dict[str, Any]:
        return {"format": FORMAT, **to_builtins(self, str_keys=True)}


def _check(manifest: Manifest) -> None:
    """Raise `Invalid` for the first rule between fields that is broken; `convert` has checked the types."""
    types = {"gate_up_dtype": manifest.gate_up_dtype, "down_dtype": manifest.down_dtype}
    types |= {f"dense_dtypes.{role}": name for role, name in asdict(manifest.dense_dtypes).items()}
    for field, name in types.items():
        if not fits_activations(name, manifest.dtype):
            raise Invalid(field, f"is {name[:MAX_QUOTED]!r}, not {manifest.dtype} or a quantised type")
    if manifest.num_experts_per_tok > manifest.num_experts:
        raise Invalid("num_experts_per_tok", f"is {manifest.num_experts_per_tok} of {manifest.num_experts}")
    _check_expert_nbytes(manifest)
    if not is_ascending(manifest.moe_layers):
        raise Invalid("moe_layers", "are not ascending layer numbers")
    if len(manifest.experts) != len(manifest.moe_layers):
        raise Invalid("experts", f"are {len(manifest.experts)} modules for {len(manifest.moe_layers)} layers")
    _check_program(manifest)
    manifest.dense.check("dense")
    for name, sha256 in manifest.files.items():
        PartitionFile(name, 0, sha256).check(f"files.{name}")
    for number, block in enumerate(manifest.blocks):
        where = f"blocks[{number}]"
        block.check(where)
        nbytes = block.offset + manifest.expert_nbytes * block.num_experts
        if block.nbytes != nbytes:
            raise Invalid(f"{where}.nbytes", f"is {block.nbytes}, its experts need {nbytes}")
    _check_coverage(manifest)


def _check_program(manifest: Manifest) -> None:
    program = manifest.program
    if program is None:
        if manifest.way == "program":
            raise Invalid("program", "is missing, though it is the way")
        return
    routed = tuple(number for number, layer in enumerate(program.layers) if layer.router is not None)
    if routed != manifest.moe_layers:
        raise Invalid("program.layers", "are not those of moe_layers that have routers")
    for number, layer in enumerate(program.layers):
        if layer.rotation is not None and layer.rotation >= len(program.rotations):
            raise Invalid(f"program.layers[{number}].rotation", f"is {layer.rotation}, and there is none")


def _check_expert_nbytes(manifest: Manifest) -> None:
    """The kernel reads as many bytes as an expert's sizes need."""
    try:
        shape = manifest.expert_shape
    except ValueError as error:
        # The other fields have been checked.
        raise Invalid("activation", str(error)) from error
    needed = -(-shape.nbytes // PAGE_NBYTES) * PAGE_NBYTES
    if manifest.expert_nbytes != needed:
        raise Invalid(
            "expert_nbytes", f"is {manifest.expert_nbytes}, an expert of these sizes needs {needed}"
        )


def _check_coverage(manifest: Manifest) -> None:
    """Each expert of the model must be in exactly one block, and each function must have one block."""
    if len({block.function for block in manifest.blocks}) != len(manifest.blocks):
        raise Invalid("blocks", "two blocks have the same function")
    found = Counter(
        (layer, expert)
        for block in manifest.blocks
        for layer, experts in block.experts.items()
        for expert in experts
    )
    # Lazy: a wrong num_experts may be too large to list all experts.
    wanted = ((layer, expert) for layer in manifest.moe_layers for expert in range(manifest.num_experts))
    problems = {
        "is in two blocks": (key for key, count in found.items() if count > 1),
        "is in no block": (key for key in wanted if key not in found),
        "is not one of this model's": (
            (layer, expert)
            for layer, expert in found
            if layer not in manifest.moe_layers or expert >= manifest.num_experts
        ),
    }
    for problem, keys in problems.items():
        for layer, expert in keys:
            raise Invalid("blocks", f"expert {expert} of layer {layer} {problem}")

"""Tiny random models of families of transformers, split into a dense file and experts in this process."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from control_plane.engine.kernels import load_dense_kernel
from control_plane.engine.model.dense_model import DenseModel, MemorySize
from control_plane.engine.model.transformers_model.experts import experts_modules
from control_plane.engine.model.transformers_model.lockstep.model import LockstepModel
from control_plane.engine.model.transformers_model.ragged.model import RaggedModel
from control_plane.engine.model.transformers_model.tensor_views import to_numpy, to_torch
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.state.sequence import SamplingParams, Sequence
from control_plane.engine.state.sequence_memory import SequenceMemory
from control_plane.engine.transformers_loader import load_transformers
from control_plane.partition.model.architecture import Way
from tests.support.models.family_configs import LOCKSTEP, family_config


def family_model(family: str, **overrides: Any) -> PreTrainedModel:
    """A random model in float32, whose vectors and experts are far from what they are initialised with."""
    config = family_config(family, **overrides)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    own: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model: PreTrainedModel = own(config).float().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in tensors.items():
        computed = ("inv_freq", "A_log", "dt", "embed_scale")
        if "experts" in name and tensor.ndim >= 2:
            tensor.data = 0.2 * torch.randn(tensor.shape, generator=generator)
        elif tensor.ndim == 1 and tensor.is_floating_point() and not any(part in name for part in computed):
            tensor.data += 0.2 * torch.randn(tensor.shape, generator=generator)
    model.set_experts_implementation("eager")
    return model


def save_dense(model: PreTrainedModel, folder: Path, dtype: str) -> Path:
    """Write config.json and the dense file, with the names of the model's own tensors; returns the file.

    With `dtype` "bf16", those that the family keeps in float32 stay so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    experts = {
        f"{module}.{name}"
        for module, each in experts_modules(model).items()
        for name, _ in each.named_parameters(recurse=False)
    }
    strict: Any = model._keep_in_fp32_modules_strict if dtype == "bf16" else [""]
    tensors = {
        name: tensor.clone() if any(part in name for part in strict) else tensor.bfloat16()
        for name, tensor in model.state_dict().items()
        if name not in experts
    }
    save_file(tensors, folder / "dense.safetensors", metadata={"format": "pt"})
    return folder / "dense.safetensors"


class LocalExperts:
    """In the place of a dispatcher: the experts of an unsplit model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._modules: list[Any] = list(experts_modules(model).values())
        self.calls: list[tuple[int, int]] = []
        """The layer and the number of rows of each call."""

    def begin(
        self, layer: int, hidden_states: NDArray[Any], index: NDArray[Any], weights: NDArray[np.float32]
    ) -> "LocalExperts":
        self.calls.append((layer, len(index)))
        rows, module = to_torch(hidden_states), self._modules[layer]
        # Experts in this process know no -1.
        absent = torch.from_numpy(index < 0)
        chosen = torch.from_numpy(index).masked_fill(absent, 0)
        shares = torch.from_numpy(weights).masked_fill(absent, 0)
        with torch.inference_mode():
            self._output = module(rows.float(), chosen, shares).to(rows.dtype)
        return self

    def wait(self) -> NDArray[Any]:
        return to_numpy(self._output)


@dataclass(frozen=True)
class SplitModel:
    """A model split in two, and the unsplit one."""

    reference: PreTrainedModel
    model: RaggedModel | LockstepModel
    experts: LocalExperts

    @classmethod
    def make(
        cls, family: str, folder: Path, way: Way | None = None, dtype: str = "f32", **overrides: Any
    ) -> "SplitModel":
        """The split model computes in `way`; without it, in that of its family."""
        reference = family_model(family, **overrides)
        dense = save_dense(reference, folder, dtype)
        layers = range(len(experts_modules(reference)))
        way = way or ("lockstep" if family in LOCKSTEP else "ragged")
        model = load_transformers(
            folder, dense, dtype, layers, 1, load_dense_kernel(), way, family != "jamba"
        )
        experts = LocalExperts(reference)
        model.attach(experts)  # type: ignore[arg-type]
        return cls(reference, model, experts)

    def memory(self, num_pages: int = 4000, num_lanes: int = 8) -> SequenceMemory:
        """Memory for sequences."""
        return self.model.new_memory(MemorySize(num_pages, num_lanes, 256, 1))

    def logits(self, batch: list[Chunk], memory: SequenceMemory) -> list[torch.Tensor]:
        """The logits [n, vocabulary] of each chunk's rows. Gives the sequences room first."""
        for chunk in batch:
            memory.pages.allocate(chunk.sequence, chunk.end)
        model: DenseModel = self.model
        logits = to_torch(model.logits(model.hidden_states(batch, memory))).float()
        return list(torch.split(logits, [chunk.length for chunk in batch]))

    def expected(self, chunk: Chunk) -> torch.Tensor:
        """The unsplit model's logits [n, vocabulary] for the rows of a chunk, without any cache."""
        tokens = torch.tensor([chunk.sequence.token_ids[: chunk.end]])
        with torch.inference_mode():
            logits: torch.Tensor = self.reference(input_ids=tokens, use_cache=False).logits[0]
        return logits[chunk.start :]

    def error(self, batch: list[Chunk], memory: SequenceMemory) -> float:
        """The largest difference of a logit from the unsplit model's. Logits above 1 count in relation."""
        errors = []
        for chunk, logits in zip(batch, self.logits(batch, memory), strict=True):
            expected = self.expected(chunk)
            errors.append(float((logits - expected).abs().max() / max(1.0, float(expected.abs().max()))))
        return max(errors)


def prompts(*lengths: int) -> list[Sequence]:
    """Sequences with random prompts of these lengths."""
    generator = torch.Generator().manual_seed(3)
    tokens = [torch.randint(3, 90, (length,), generator=generator).tolist() for length in lengths]
    return [Sequence("test", "tenant", each, SamplingParams(16)) for each in tokens]


def rest(sequence: Sequence) -> Chunk:
    """The tokens of a sequence that are not computed yet."""
    return Chunk(sequence, sequence.num_computed, sequence.num_uncomputed)


def steps(split: SplitModel, memory: SequenceMemory, *, in_parts: bool) -> Iterator[float]:
    """The errors of steps over three sequences, one of which may have its prompt in parts, and decoding."""
    sequences = prompts(21, 1, 9)
    if in_parts:
        part = Chunk(sequences[0], 0, 13)
        yield split.error([part], memory)
        sequences[0].num_computed = part.end
    for _ in range(4):
        batch = [rest(sequence) for sequence in sequences]
        yield split.error(batch, memory)
        for chunk in batch:
            chunk.sequence.num_computed = chunk.end
            chunk.sequence.token_ids.append(int(split.expected(chunk)[-1].argmax()))

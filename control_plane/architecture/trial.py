"""Tries a small model of the same kind: whether FaaSMoE computes what transformers computes.

The model is written as a checkpoint in the published form, partitioned, and served by the engine with its
functions in this process: several sequences, of which one has its prompt cut into chunks, and some tokens
generated. Each row's logits are compared with those of the unsplit model, which gets the whole sequence.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from control_plane.architecture.describe import describe
from control_plane.architecture.local_functions import LocalFunctions
from control_plane.architecture.model import empty_model, model_class
from control_plane.architecture.programs.describe import KINDS, Kind, program_of
from control_plane.architecture.shrink import shrunk
from control_plane.config import ServeConfig
from control_plane.engine.assembly import build_runner
from control_plane.engine.model.runner import ModelRunner
from control_plane.engine.scheduling.policy import POLICIES
from control_plane.engine.scheduling.scheduler import Scheduler
from control_plane.engine.state.sequence import SamplingParams
from control_plane.engine.state.sequence import Sequence as TokenSequence
from control_plane.faas.invocation import ResidentLimits
from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.checkpoint.tensors.tensor import Tensor
from control_plane.partition.manifest import Manifest
from control_plane.partition.model.architecture import Architecture, Way
from control_plane.partition.model.program import Program
from control_plane.partition.partitioner import partition
from functions.kernels.bfloat16 import as_f32

TOLERANCE = 1e-4
"""The largest difference of a logit, as a share of the largest logit or of 1."""
PROMPTS = (21, 1, 9)
"""Tokens of the prompts."""
CHUNK, NEW_TOKENS = 13, 5
_MAX_PARAMETERS = 50_000_000
_SPREAD = 0.15

Found = float | Exception
"""The largest difference of logits, or why there are none."""


@dataclass(frozen=True)
class _MemoryTensor(Tensor):
    """A tensor in memory."""

    values: NDArray[np.float32]

    def read(self, start: int, count: int) -> NDArray[Any]:
        return self.values[start : start + count]


@dataclass(frozen=True)
class Trial:
    """A way to serve a model that is tried."""

    way: Way
    chunks_prompts: bool = True
    kind: Kind | None = field(default=None, compare=False)
    """Of the program that was right."""

    def __str__(self) -> str:
        return self.way if self.chunks_prompts else f"{self.way}, whole prompts"


def differences(config: PretrainedConfig, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Found]]:
    """For each trial, the largest difference of a small model's logits, or why it does not compute them.

    Of programs, all kinds are tried until one is right.

    Raises what the family's own code raises for the small config.
    """
    small = shrunk(config)
    model = random_model(small)
    with tempfile.TemporaryDirectory(prefix="faasmoe-trial-") as folder:
        checkpoint = published(model, Path(folder) / "model")
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        target = Path(folder) / "partition"
        architecture = describe(small, shapes)
        manifest = partition(checkpoint, target, dtype="f32", architecture=architecture)
        for trial in trials:
            if trial.way == "program":
                yield _of_programs(trial, small, architecture, model, target, manifest)
            else:
                yield trial, _found(trial, model, target, manifest)


def _of_programs(
    trial: Trial,
    config: PretrainedConfig,
    architecture: Architecture,
    model: PreTrainedModel,
    folder: Path,
    manifest: Manifest,
) -> tuple[Trial, Found]:
    """The first kind that is right, or the last of all."""
    found: Found = math.inf
    tried: set[Program] = set()
    for kind in KINDS:
        try:
            program = program_of(empty_model(config), architecture, kind)
        except Exception as error:  # Modules that are no plain layers raise anything.
            return trial, error
        if program in tried:
            continue
        tried.add(program)
        trial = changed(trial, kind=kind)
        found = _found(trial, model, folder, replace(manifest, program=program))
        if isinstance(found, float) and found <= TOLERANCE:
            break
    return trial, found


def _found(trial: Trial, model: PreTrainedModel, folder: Path, manifest: Manifest) -> Found:
    try:
        tried = replace(manifest, way=trial.way, chunks_prompts=trial.chunks_prompts)
        tried.save(folder)
        return _difference(model, folder, tried)
    except Exception as error:  # A family that this way does not suit raises anything.
        return error


def random_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model in float32 whose matrices, norms and biases all count."""
    # What shrinking does not know of may be of any size.
    if sum(parameter.numel() for parameter in empty_model(config).parameters()) > _MAX_PARAMETERS:
        raise ValueError(f"a small model of {config.model_type} is too large to be tried")
    torch.manual_seed(seed)
    model: PreTrainedModel = model_class(config)(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        noise = _SPREAD * torch.randn(tensor.shape, generator=generator)
        if not tensor.is_floating_point() or _is_sensitive(name):
            continue
        # Those that families begin with are so small, or zero, that what is made of them hardly counts.
        tensor.data = noise if tensor.ndim > 1 else tensor.data + noise
    return model


def published(model: PreTrainedModel, folder: Path) -> Checkpoint:
    """The model as a checkpoint in the form in which its family is published, with its config in a folder."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    document = json.loads((folder / "config.json").read_text())
    state = revert_weight_conversion(model, model.state_dict())
    tensors = {
        name: _MemoryTensor(name, folder, "F32", tuple(tensor.shape), tensor.detach().float().numpy().ravel())
        for name, tensor in state.items()
    }
    return Checkpoint(folder, document, tensors)


def _difference(model: PreTrainedModel, folder: Path, manifest: Manifest) -> float:
    functions = LocalFunctions(folder, manifest)
    try:
        config = ServeConfig(
            prefetch=False, kv_cache_mb=64, max_batch_tokens=CHUNK, max_sequences=len(PROMPTS), threads=1
        )
        runner = build_runner(folder, manifest, functions, ResidentLimits(), config)
        return max(_row_differences(model, runner, config))
    finally:
        functions.close()


def _row_differences(model: PreTrainedModel, runner: ModelRunner, config: ServeConfig) -> Iterator[float]:
    """That of each chunk, while the sequences are generated greedily."""
    scheduler = Scheduler(
        runner.kv_cache,
        config.max_batch_tokens,
        config.max_sequences,
        POLICIES[config.scheduling](),
        runner.model.chunks_prompts,
    )
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(3)
    for length in PROMPTS:
        tokens = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        scheduler.add(TokenSequence("trial", "trial", tokens, SamplingParams(NEW_TOKENS)))
    while batch := scheduler.schedule():
        logits = torch.from_numpy(as_f32(runner.model.logits(runner.run(batch))))
        row = 0
        scheduler.commit(batch)
        for chunk in batch:
            sequence = chunk.sequence
            expected = _logits(model, sequence.token_ids[: chunk.end])[chunk.start :]
            found = logits[row : row + chunk.length]
            row += chunk.length
            yield _largest_difference(found, expected)
            if chunk.is_last:
                sequence.append(int(expected[-1].argmax()), frozenset())
                if sequence.finish_reason:
                    scheduler.remove(sequence)


@torch.inference_mode()
def _logits(model: Any, tokens: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


def _largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Infinite where a logit is not a number."""
    difference = (found - expected).abs().max().item() / max(1.0, expected.abs().max().item())
    return difference if math.isfinite(difference) else math.inf


def _is_sensitive(name: str) -> bool:
    """Whether noise would make a model of no kind that is trained: frequencies, and rates of decay."""
    return any(part in name for part in ("inv_freq", "A_log", "dt_bias", "embed_scale"))

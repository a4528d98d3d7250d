"""Bytes of weights that a decode step of a model uses."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from control_plane.errors import ConfigError
from control_plane.partition.checkpoint.tensors.safetensors_file import load_header
from control_plane.partition.dense import EMBEDDING
from control_plane.partition.manifest import Manifest


@dataclass(frozen=True)
class StepWeights:
    """The weights that one decode step of a partition's model uses."""

    dense_bytes: int
    expert_nbytes: int
    likelihood: NDArray[np.float64]
    """Probability [layers, experts] that a token is routed to an expert."""

    @classmethod
    def of(cls, folder: Path, profile: Path | None) -> "StepWeights":
        """The weights of a partition. Without a profile, all experts are assumed to be equally likely.

        Raises `PartitionError`, or `ConfigError` for the profile of another model.
        """
        manifest = Manifest.load(folder)
        shape = (len(manifest.moe_layers), manifest.num_experts)
        use = np.ones(shape) if profile is None else _use(profile, shape)
        likelihood = use / use.sum(axis=1, keepdims=True) * manifest.num_experts_per_tok
        dense = used_dense_bytes(folder / manifest.dense.file)
        return cls(dense, manifest.expert_nbytes, np.minimum(likelihood, 1.0))

    def nbytes(self, sequences: int) -> float:
        """Expected bytes of a step with one token of each sequence, which reads each expert at most once."""
        experts = float((1 - (1 - self.likelihood) ** sequences).sum())
        return self.dense_bytes + experts * self.expert_nbytes


def used_dense_bytes(file: Path) -> int:
    """Bytes of a dense part without the embeddings, of which a token uses only one row."""
    header, _ = load_header(file)
    used = [entry for name, entry in header.items() if name not in ("__metadata__", EMBEDDING)]
    return sum(end - begin for begin, end in (entry["data_offsets"] for entry in used))


def _use(profile: Path, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Use counts [layers, experts] from a file of `faasmoe profile`. Raises `ConfigError`."""
    try:
        with safe_open(profile, framework="numpy") as tensors:
            use: NDArray[np.float64] = tensors.get_tensor("use").astype(np.float64)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{profile} is not a profile: {error}") from error
    if use.shape != shape or (use.sum(axis=1) == 0).any():
        raise ConfigError(f"{profile} is the profile of another model: use of {use.shape}, not {shape}")
    return use

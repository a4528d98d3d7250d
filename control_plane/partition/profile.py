"""Profiles: counts of the experts that tokens of a sample used, alone and in pairs, as input for packing."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from control_plane.errors import PartitionError
from control_plane.formatting import table

_FORMAT = "faasmoe-profile"


@dataclass(frozen=True)
class Profile:
    """Counts of tokens for each MoE layer, in the model's order."""

    model: str
    """The model's name, for error messages."""
    use: NDArray[np.int64]
    """Tokens that used each expert, [layers, experts]."""
    together: NDArray[np.int64]
    """Tokens that used both of two experts, [layers, experts, experts]; symmetric, with a zero diagonal."""

    def check(self, num_layers: int, num_experts: int) -> None:
        """Raise `PartitionError` if the profile is of a model of other sizes."""
        if self.use.shape != (num_layers, num_experts):
            layers, experts = self.use.shape
            raise PartitionError(
                f"the profile is of another model: of {self.model}, with {layers} MoE layers of {experts} "
                f"experts, not {num_layers} of {num_experts}"
            )

    def save(self, path: Path) -> None:
        """Write the profile as a safetensors file. Raises `PartitionError` if it cannot be written."""
        metadata = {"format": _FORMAT, "model": self.model}
        try:
            save_file({"use": self.use, "together": self.together}, path, metadata)
        except (OSError, SafetensorError) as error:
            raise PartitionError(f"cannot write {path}: {error}") from error

    @classmethod
    def load(cls, path: Path) -> "Profile":
        """Read a file that `save` wrote. Raises `PartitionError` for any other file."""
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise PartitionError(f"{path} is not a profile, as `faasmoe profile` writes it")
                use, together = file.get_tensor("use"), file.get_tensor("together")
        # NumPy does not know every dtype of safetensors, and says so by TypeError or AttributeError.
        except (OSError, SafetensorError, TypeError, AttributeError) as error:
            raise PartitionError(f"{path} is not a profile that can be read: {error}") from error
        if problem := _problem(use, together):
            raise PartitionError(f"{path} is damaged: {problem}")
        return cls(metadata.get("model", ""), use, together)

    def summary(self) -> Iterator[str]:
        """The lines of a table that shows, for each layer, how unevenly its experts are used."""
        hot = max(1, self.use.shape[1] // 4)
        rows = []
        for layer, use in enumerate(self.use):
            share = np.sort(use)[-hot:].sum() / max(1, use.sum())
            rows.append([str(layer), f"{share:.0%}", f"{np.count_nonzero(use)} of {len(use)}"])
        return table(["MoE layer", f"uses by the {hot} hottest", "experts used"], rows)


def _problem(use: NDArray[np.int64], together: NDArray[np.int64]) -> str | None:
    """The first fault in a profile's counts, or None."""
    if use.dtype != np.int64 or together.dtype != np.int64:
        return f"its counts are {use.dtype} and {together.dtype}, not int64"
    if use.ndim != 2 or together.shape != (*use.shape, use.shape[1]):
        return f"use has the shape {use.shape}, together {together.shape}"
    if use.size == 0 or use.min() < 0 or together.min() < 0:
        return "it has no counts, or negative ones"
    if (together != together.swapaxes(1, 2)).any():
        return "together is not symmetric"
    return None

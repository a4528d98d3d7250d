"""Profiles: what a sample of tokens did in the MoE layers of a model.

Counts of the experts that tokens used, alone and in pairs, decide which experts share a function. Squares of
the experts' inputs decide which errors count most when weights are quantised."""

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
_TENSORS = ("use", "together", "input_squares")


@dataclass(frozen=True)
class Profile:
    """Counts and means over the tokens of each MoE layer, in the model's order."""

    model: str
    """The model's name, for error messages."""
    use: NDArray[np.int64]
    """Tokens that used each expert, [layers, experts]."""
    together: NDArray[np.int64]
    """Tokens that used both of two experts, [layers, experts, experts]; symmetric, with a zero diagonal."""
    input_squares: NDArray[np.float32]
    """The mean square of each input of a layer's experts, [layers, hidden]."""

    def check(self, num_layers: int, num_experts: int, hidden_size: int) -> None:
        """Raise `PartitionError` if the profile is of a model of other sizes."""
        if self.use.shape != (num_layers, num_experts):
            layers, experts = self.use.shape
            raise PartitionError(
                f"the profile is of another model: of {self.model}, with {layers} MoE layers of {experts} "
                f"experts, not {num_layers} of {num_experts}"
            )
        if self.input_squares.shape[1] != hidden_size:
            raise PartitionError(
                f"the profile is of another model: of {self.model}, with a hidden size of "
                f"{self.input_squares.shape[1]}, not {hidden_size}"
            )

    def save(self, path: Path) -> None:
        """Write the profile as a safetensors file. Raises `PartitionError` if it cannot be written."""
        metadata = {"format": _FORMAT, "model": self.model}
        try:
            save_file({name: getattr(self, name) for name in _TENSORS}, path, metadata)
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
                use, together, input_squares = (file.get_tensor(name) for name in _TENSORS)
        # NumPy does not know every dtype of safetensors, and says so by TypeError or AttributeError.
        except (OSError, SafetensorError, TypeError, AttributeError) as error:
            raise PartitionError(f"{path} is not a profile that can be read: {error}") from error
        if problem := _problem(use, together, input_squares):
            raise PartitionError(f"{path} is damaged: {problem}")
        return cls(metadata.get("model", ""), use, together, input_squares)

    def summary(self) -> Iterator[str]:
        """The lines of a table that shows, for each layer, how unevenly its experts are used."""
        hot = max(1, self.use.shape[1] // 4)
        rows = []
        for layer, use in enumerate(self.use):
            share = np.sort(use)[-hot:].sum() / max(1, use.sum())
            rows.append([str(layer), f"{share:.0%}", f"{np.count_nonzero(use)} of {len(use)}"])
        return table(["MoE layer", f"uses by the {hot} hottest", "experts used"], rows)


def _problem(
    use: NDArray[np.int64], together: NDArray[np.int64], input_squares: NDArray[np.float32]
) -> str | None:
    """The first fault in a profile's tensors, or None."""
    if use.dtype != np.int64 or together.dtype != np.int64:
        return f"its counts are {use.dtype} and {together.dtype}, not int64"
    if use.ndim != 2 or together.shape != (*use.shape, use.shape[1]):
        return f"use has the shape {use.shape}, together {together.shape}"
    if use.size == 0 or use.min() < 0 or together.min() < 0:
        return "it has no counts, or negative ones"
    if (together != together.swapaxes(1, 2)).any():
        return "together is not symmetric"
    if input_squares.dtype != np.float32 or input_squares.ndim != 2 or len(input_squares) != len(use):
        return f"input_squares is {input_squares.dtype} of the shape {input_squares.shape}"
    if not np.isfinite(input_squares).all() or input_squares.min(initial=0) < 0:
        return "input_squares has values that are not finite, or negative ones"
    return None

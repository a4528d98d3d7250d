"""The hook in transformers' interface of attention masks: which tokens a row of a sequence sees."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AttentionMaskInterface

from control_plane.engine.model.transformers_model.experts import INTERFACE

MaskFunction = Callable[[Any, Any, torch.Tensor, torch.Tensor], torch.Tensor]
"""transformers' form: of the batch, the head, the position of the row and that of the token."""


@dataclass
class TokenMask:
    """A family's own mask, as a function of positions, in place of a tensor for a batch of one sequence.

    All layers of a step with the same kind of mask share one object.
    """

    function: MaskFunction
    _seen: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    _windows: dict[bytes, int | None] = field(default_factory=dict)

    def seen(self, start: int, end: int) -> torch.Tensor:
        """[end - start, end]: whether the rows at these positions of a sequence see each of its tokens."""
        if (start, end) not in self._seen:
            rows, tokens = torch.arange(start, end)[:, None], torch.arange(end)[None]
            self._seen[start, end] = self.function(0, 0, rows, tokens).expand(end - start, end)
        return self._seen[start, end]

    def window(self, positions: NDArray[np.int64]) -> int | None:
        """The most tokens that each of these rows sees, its own among them, and none that is further back.

        None if the rows see other tokens than such a window has. The last token is each row's own.
        """
        key = positions.tobytes()
        if key not in self._windows:
            self._windows[key] = self._find_window(positions.tolist())
        return self._windows[key]

    def _find_window(self, positions: list[int]) -> int | None:
        seen = [self.seen(position, position + 1)[0] for position in positions]
        counts = [int(row.sum()) for row in seen]
        window = max(counts, default=1)
        for position, row, count in zip(positions, seen, counts, strict=True):
            if count == 0 or count != min(position + 1, window) or not row[-count:].all():
                return None
        return window


def causal(window: int | None) -> TokenMask:
    """The mask of a family that leaves it to the attention: a row sees itself and those before it."""

    def function(batch: Any, head: Any, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        seen = token <= row
        return seen if window is None else seen & (token > row - window)

    return TokenMask(function)


def register() -> None:
    """Have transformers hand out masks as `TokenMask`s where attention is ours. Again is harmless."""
    AttentionMaskInterface.register(INTERFACE, _token_mask)


def _token_mask(*args: object, mask_function: MaskFunction, **options: object) -> TokenMask:
    return TokenMask(mask_function)

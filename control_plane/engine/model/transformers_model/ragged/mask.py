"""The hook in transformers' interface of attention masks: which tokens a row of a sequence sees."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
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
    _windows: dict[tuple[tuple[int, int], ...], int | None] = field(default_factory=dict)

    def seen(self, start: int, end: int) -> torch.Tensor:
        """[end - start, end]: whether the rows at these positions of a sequence see each of its tokens."""
        if (start, end) not in self._seen:
            rows, tokens = torch.arange(start, end)[:, None], torch.arange(end)[None]
            self._seen[start, end] = self.function(0, 0, rows, tokens).expand(end - start, end)
        return self._seen[start, end]

    def window(self, spans: Sequence[tuple[int, int]]) -> int | None:
        """The most tokens that a row sees, its own among them, and none that is further back.

        `spans` are the first positions and the ends of rows of sequences. None if rows see other tokens than
        such a window has.
        """
        key = tuple(spans)
        if key not in self._windows:
            self._windows[key] = self._find_window(key)
        return self._windows[key]

    def _find_window(self, spans: Sequence[tuple[int, int]]) -> int | None:
        seen = [self.seen(*span) for span in spans]
        window = max(int(rows.sum(dim=1).max()) for rows in seen)
        windows = causal(window)
        is_window = all(
            torch.equal(rows, windows.seen(*span)) for rows, span in zip(seen, spans, strict=True)
        )
        return window if is_window else None


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

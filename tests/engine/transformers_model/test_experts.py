"""The hook in transformers' experts interface."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from control_plane.engine.model.transformers_model.experts import ExpertsPath, RemoteExperts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_beyond_the_experts_are_none(dtype: torch.dtype) -> None:
    """A family has them where a row has fewer experts than others."""
    calls: list[tuple[int, Any, Any]] = []

    def compute(layer: int, rows: NDArray[Any], index: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
        calls.append((layer, index.tolist(), weights.tolist()))
        assert rows.dtype == (np.uint16 if dtype == torch.bfloat16 else np.float32)
        return rows

    experts = RemoteExperts(7, 4, dtype, ExpertsPath(compute))
    rows = torch.arange(6, dtype=torch.float32).view(3, 2)
    index = torch.tensor([[0, 3], [4, 1], [-1, 99]], dtype=torch.int32)
    out = experts(rows, index, torch.full((3, 2), 0.5, dtype=torch.bfloat16))
    assert torch.equal(out, rows)
    assert calls == [(7, [[0, 3], [-1, 1], [-1, -1]], [[0.5, 0.5], [0, 0.5], [0, 0]])]

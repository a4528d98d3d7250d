"""A tiny partition and the model that it was made from, whose weights give the expected answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from control_plane.partition.granularity import Granularity
from control_plane.partition.manifest import Manifest
from control_plane.partition.partitioner import partition
from functions.contract.messages import Invocation
from tests.support.models.checkpoints import save_checkpoint, tiny_model

ERROR_BOUNDS = {"f32": 2e-6, "bf16": 3 * 2**-8, "int8": 0.05, "int4_min": 0.2}
"""The largest error of an output row, relative to the sums of its terms' absolute values.

f32 differs by the order of additions (up to 4e-7 in practice). bf16 rounds the intermediate activations, a
function's output and the sum of several outputs, each time by 2**-8 at most. int8 rounds weights and
activations to multiples of 1/127 of the largest in their group (up to 0.02 in practice).
"""


@dataclass(frozen=True)
class TinyPartition:
    """A model of 3 layers of 5 experts, hidden size 24. Weights are large, so that SwiGLU is nonlinear."""

    folder: Path
    manifest: Manifest
    model: PreTrainedModel

    @classmethod
    def make(cls, folder: Path, dtype: str, granularity: Granularity) -> "TinyPartition":
        """Write a partition below `folder`; `dtype` is the experts' type."""
        source = torch.bfloat16 if dtype == "bf16" else torch.float32
        model = tiny_model("qwen2_moe", dtype=source, initializer_range=0.5, num_experts_per_tok=4)
        save_checkpoint(model, folder / "model")
        out = folder / "partition"
        manifest = partition(folder / "model", out, granularity=granularity, dtype=dtype, name="tiny")
        return cls(out, manifest, model)

    @property
    def functions(self) -> list[str]:
        return [block.function for block in self.manifest.blocks]

    def invocation(
        self, function: str, layer: int = 0, *, rows: int = 3, top_k: int = 4, seed: int = 0
    ) -> Invocation:
        """Random rows for the experts of one block; some places hold -1, another block's expert."""
        random = np.random.default_rng(seed)
        experts = self.manifest.block(function).experts[layer]
        return Invocation(
            layer=layer,
            model=self.manifest.fingerprint,
            hidden_states=self.hidden_states(rows, seed),
            expert_index=random.choice([-1, *experts], (rows, top_k)).astype(np.int16),
            expert_weight=random.random((rows, top_k), np.float32),
        )

    def hidden_states(self, rows: int, seed: int = 0) -> NDArray[Any]:
        """Random hidden states [rows, H] in the wire format: float32, or the bits of bf16."""
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(rows, self.manifest.hidden_size, generator=generator)
        return (
            values.bfloat16().view(torch.uint16).numpy() if self.manifest.dtype == "bf16" else values.numpy()
        )

    def expected(self, invocation: Invocation) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The weighted sums [T, H] in float64, and the sums of the same terms' absolute values."""
        hidden = as_float64(invocation.hidden_states)
        total, magnitude = np.zeros_like(hidden), np.zeros_like(hidden)
        for row, slot in np.argwhere(invocation.expert_index >= 0):
            gate, up, down = self._weights(invocation.layer, invocation.expert_index[row, slot])
            gated = gate @ hidden[row]
            terms = down * (gated / (1 + np.exp(-gated)) * (up @ hidden[row]))
            terms *= invocation.expert_weight[row, slot]
            total[row] += terms.sum(axis=1)
            magnitude[row] += np.abs(terms).sum(axis=1)
        return total, magnitude

    def check(self, invocation: Invocation, output: NDArray[Any]) -> None:
        """Fail unless each row of `output` equals the model's result within the dtype's bound."""
        expected, magnitude = self.expected(invocation)
        assert output.dtype == invocation.hidden_states.dtype
        assert output.shape == expected.shape
        error = np.linalg.norm(as_float64(output) - expected, axis=1)
        assert (error <= ERROR_BOUNDS[self.manifest.gate_up_dtype] * np.linalg.norm(magnitude, axis=1)).all()

    def _weights(self, layer: int, expert: int) -> tuple[NDArray[np.float64], ...]:
        """The matrices gate and up [I, H], and down [H, I]."""
        experts = self.model.model.layers[layer].mlp.experts
        gate, up = experts.gate_up_proj[expert].detach().double().chunk(2)
        return gate.numpy(), up.numpy(), experts.down_proj[expert].detach().double().numpy()


def as_float64(array: NDArray[Any]) -> NDArray[np.float64]:
    """The values of a float32 array, or of an array of bf16 bits."""
    tensor = torch.tensor(array)
    return (tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor).double().numpy()

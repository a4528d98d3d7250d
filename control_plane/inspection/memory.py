"""Estimates which experts a memory budget holds, and what bounds the speed then."""

from dataclasses import dataclass

from control_plane.autoscaling.footprint import FUNCTION_OVERHEAD_BYTES, HEAP_BYTES, StepShape
from control_plane.config import ServeConfig
from control_plane.engine.model.runner import LOGITS_ROWS
from control_plane.inspection.attention import copied_weights
from control_plane.partition.dense import HEAD, PackedGatedPlan
from control_plane.partition.plan import Plan

PROCESS_BYTES = 170_000_000
"""A control plane's process, and the two that encode prompts."""
TORCH_BYTES = 350_000_000
"""What transformers' modules take besides, where they compute the dense part."""
_LEAST_EXPERTS = 2
"""The least experts that a function needs memory for."""


@dataclass(frozen=True)
class Fit:
    """A memory budget's share for experts, and the tokens per second that bandwidths allow."""

    resident: int | None
    """Experts of each layer that are in memory, on average; None if the budget is too small to run."""
    tokens_per_second: float | None
    """Of one sequence. None if the budget is too small, or if it depends on a disk that was not measured."""


def fixed_bytes(plan: Plan, dense_read: int, functions: int) -> int:
    """What is always in memory: everything but experts. `dense_read` is the dense part without embeddings."""
    config, architecture = ServeConfig(), plan.architecture
    head = architecture.dense.get(f"{HEAD}.weight")
    step = StepShape(
        rows=config.max_batch_tokens,
        hidden_size=architecture.hidden_size,
        intermediate_size=max(
            [
                architecture.intermediate_size,
                *(
                    tensor.shape.intermediate_size
                    for tensor in plan.dense
                    if isinstance(tensor, PackedGatedPlan)
                ),
            ]
        ),
        experts_per_row=architecture.num_experts_per_tok,
        logits_rows=max(LOGITS_ROWS, config.max_sequences),
        vocabulary=head.shape[0] if head else 0,
        masked=0,
    )
    torch = 0 if architecture.way == "program" else TORCH_BYTES
    copies = copied_weights(architecture) * (2 if plan.types.dtype == "bf16" else 4)
    own = PROCESS_BYTES + torch + copies + HEAP_BYTES + dense_read + step.nbytes + (config.kv_cache_mb << 20)
    return own + functions * FUNCTION_OVERHEAD_BYTES


def fit(
    plan: Plan,
    budget: int,
    fixed: int,
    functions: int,
    per_token: int,
    memory_bandwidth: float,
    disk_bandwidth: float | None,
) -> Fit:
    """What a budget of bytes holds, where `fixed` are taken and a token reads `per_token`.

    Experts that are not in memory are read from disk, as often as if all of them were used alike. Bandwidths
    are in bytes per second.
    """
    architecture = plan.architecture
    layers, experts = len(architecture.layers), architecture.num_experts
    held = min((budget - fixed) // plan.expert_nbytes, layers * experts)
    least = functions * min(max(_LEAST_EXPERTS, architecture.num_experts_per_tok), experts)
    if held < least:
        return Fit(None, None)
    seconds = per_token / memory_bandwidth
    missing = layers * architecture.num_experts_per_tok * (1 - held / (layers * experts)) * plan.expert_nbytes
    if missing and disk_bandwidth is None:
        return Fit(held // layers, None)
    if disk_bandwidth:
        seconds = max(seconds, missing / disk_bandwidth)
    return Fit(held // layers, 1 / seconds)

"""All targets by name."""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.robustness.fuzz.support.target import OpenTarget
from bench.robustness.fuzz.targets import (
    api,
    calls,
    fast_path,
    files,
    http,
    kernels,
    layers,
    messages,
    raw_kernels,
    system,
)


@dataclass(frozen=True)
class Entry:
    """A target, and how many inputs `make fuzz` gives it."""

    open: OpenTarget
    inputs: int = 10_000


TARGETS: Mapping[str, Entry] = {
    "invocations": Entry(messages.invocations, 100_000),
    "answers": Entry(messages.answers),
    "gated-ffn": Entry(kernels.gated_ffn),
    "dense": Entry(kernels.dense),
    "raw-kernels": Entry(raw_kernels.raw_kernels),
    "layers": Entry(layers.layers),
    "requests": Entry(http.requests),
    "function": Entry(http.function),
    "fast-calls": Entry(fast_path.fast_calls, 100_000),
    "responses": Entry(http.responses),
    "plain-answers": Entry(calls.plain_answers, 100_000),
    "row-groups": Entry(calls.row_groups),
    "api": Entry(api.api),
    "system": Entry(system.system),
    "manifests": Entry(files.manifests),
    "blocks": Entry(files.blocks),
    "checkpoints": Entry(files.checkpoints),
    "models": Entry(files.models, 300),
    "gguf": Entry(files.gguf),
    "config": Entry(files.config),
    "workloads": Entry(files.workloads),
}

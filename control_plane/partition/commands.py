"""For `faasmoe partition`: the granularity that its options choose, and the summary that it prints."""

from collections.abc import Iterator
from pathlib import Path

from control_plane.errors import ConfigError
from control_plane.partition.granularity import Granularity, finest_within
from control_plane.partition.manifest import Manifest
from control_plane.partition.model.architecture import Architecture


def choose_granularity(
    architecture: Architecture, experts: int | None, layers: str | None, max_functions: int | None
) -> Granularity | None:
    """The granularity that the options choose; None for the default.

    Without `layers`, a function has experts of one layer; without `experts`, all experts of its layers.
    Raises `ConfigError` for options that contradict each other.
    """
    if experts is None and layers is None and max_functions is None:
        return None
    num_experts, num_layers = architecture.num_experts, len(architecture.layers)
    if max_functions is None:
        return Granularity(num_experts if experts is None else experts, _layers(layers, num_layers))
    if experts is not None or layers is not None:
        raise ConfigError("--max-functions chooses the granularity: leave the other two options out")
    if max_functions < 1:
        raise ConfigError(f"--max-functions must be at least 1, not {max_functions}")
    return finest_within(max_functions, num_experts, num_layers)


def summary(manifest: Manifest, folder: Path) -> Iterator[str]:
    """Lines that describe a new partition in `folder`."""
    experts, layers = manifest.experts_per_function, manifest.layers_per_function
    yield (
        f"{folder}: {len(manifest.blocks)} functions of {experts} experts x {layers} layers, "
        f"{'/'.join(dict.fromkeys((manifest.gate_up_dtype, manifest.down_dtype)))} experts of "
        f"{manifest.expert_nbytes / 1e6:.2f} MB"
    )
    if not Granularity(experts, layers).is_even(manifest.num_experts, len(manifest.moe_layers)):
        smallest = min(manifest.blocks, key=lambda block: block.num_experts)
        yield (
            f"{manifest.num_experts} experts and {len(manifest.moe_layers)} layers do not divide evenly: "
            f"{smallest.function} has {smallest.num_experts} experts"
        )


def _layers(text: str | None, num_layers: int) -> int:
    if text is None:
        return 1
    if text == "all":
        return num_layers
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ConfigError(f"--layers-per-function must be a number or 'all', not {text!r}")
    return int(text)

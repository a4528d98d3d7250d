"""The strategies that are compared: ways to serve a model to several tenants."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from bench.comparison.strategies.deployment import (
    Deployment,
    ServingSetup,
    control_planes,
    full_models,
    llama_cpp,
)
from control_plane.errors import ConfigError
from control_plane.partition.manifest import Manifest

NEVER_IDLE = 86400.0
"""An idle timeout, in seconds, that is longer than any run."""
REFERENCE_BYTES = 450_000_000
"""Memory of a process with torch and transformers, besides the weights."""
FUNCTION_BYTES = 20_000_000
"""Memory of a function's process, besides the weights."""
LLAMA_CPP = "llama-cpp"


@dataclass(frozen=True)
class ModelSize:
    """Size of a partition."""

    dense_bytes: int
    experts_bytes: int
    functions: int
    """Number of functions in the partition."""

    @classmethod
    def of(cls, manifest: Manifest) -> "ModelSize":
        """Size of the partition with this manifest."""
        experts = sum(block.nbytes for block in manifest.blocks)
        return cls(manifest.dense.nbytes, experts, len(manifest.blocks))


@dataclass(frozen=True)
class Strategy:
    """One way to serve."""

    name: str
    title: str
    serve: Callable[[ServingSetup], AbstractAsyncContextManager[Deployment]]
    """Starts the processes, and stops them at the end of the context."""
    needs: Callable[[ModelSize, int], int]
    """The least memory, in bytes, for a model of this size and a number of tenants."""


def _baseline(setup: ServingSetup) -> AbstractAsyncContextManager[Deployment]:
    return full_models(setup, _one_each(setup))


def _shared_model(setup: ServingSetup) -> AbstractAsyncContextManager[Deployment]:
    return full_models(setup, [setup.tenants])


def _local(setup: ServingSetup) -> AbstractAsyncContextManager[Deployment]:
    # The paper's Local Distribution has one server with all experts, which never stops.
    return control_planes(setup, setup.one_function, _one_each(setup), NEVER_IDLE)


def _faasmoe_shared(setup: ServingSetup) -> AbstractAsyncContextManager[Deployment]:
    return control_planes(setup, setup.partition, [setup.tenants], setup.idle_timeout, setup.memory_budget)


def _faasmoe_private(setup: ServingSetup) -> AbstractAsyncContextManager[Deployment]:
    return control_planes(setup, setup.partition, _one_each(setup), setup.idle_timeout)


def _one_each(setup: ServingSetup) -> list[list[str]]:
    """Groups of one tenant."""
    return [[tenant] for tenant in setup.tenants]


def _full_model_bytes(size: ModelSize) -> int:
    return size.dense_bytes + size.experts_bytes + REFERENCE_BYTES


def _faasmoe_bytes(size: ModelSize, control_planes: int, functions: int) -> int:
    dense = control_planes * (size.dense_bytes + REFERENCE_BYTES)
    return dense + size.experts_bytes + functions * FUNCTION_BYTES


STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy(
            "baseline",
            "Baseline: a full model per tenant",
            _baseline,
            lambda size, tenants: tenants * _full_model_bytes(size),
        ),
        Strategy(
            "shared-model",
            "One full model, shared",
            _shared_model,
            lambda size, _: _full_model_bytes(size),
        ),
        Strategy(
            "local",
            "Local Distribution",
            _local,
            lambda size, tenants: _faasmoe_bytes(size, tenants, 1),
        ),
        Strategy(
            "faasmoe-shared",
            "FaaSMoE-Shared",
            _faasmoe_shared,
            lambda size, _: _faasmoe_bytes(size, 1, size.functions),
        ),
        Strategy(
            "faasmoe-private",
            "FaaSMoE-Private",
            _faasmoe_private,
            lambda size, tenants: _faasmoe_bytes(size, tenants, size.functions),
        ),
        Strategy(
            LLAMA_CPP,
            "llama.cpp's server, shared",
            llama_cpp,
            lambda size, _: size.dense_bytes + size.experts_bytes,
        ),
    )
}
"""Strategies by name, in the order in which they are measured and reported."""


def read_strategies(names: Sequence[str], llama_server: str | None = None) -> list[Strategy]:
    """The strategies with these names; "all" selects every one whose program is installed.

    Raises `ConfigError` for an unknown name, and for llama.cpp without its server.
    """
    if unknown := [name for name in names if name not in STRATEGIES and name != "all"]:
        raise ConfigError(f"no strategy {unknown[0]!r}; there are all, {', '.join(STRATEGIES)}")
    if LLAMA_CPP in names and not llama_server:
        raise ConfigError(f"{LLAMA_CPP} needs llama.cpp's llama-server: on the PATH, or by --llama-server")
    installed = [name for name in STRATEGIES if name != LLAMA_CPP or llama_server]
    return [STRATEGIES[name] for name in installed if name in names or "all" in names]

"""The ways to serve several tenants that are compared, each as processes of its own."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.comparison.llama_cpp_server import llama_cpp_server
from bench.comparison.replay import Endpoint
from bench.comparison.resources import Root
from bench.support import processes
from control_plane.errors import ConfigError
from control_plane.partition.manifest import Manifest

READY_SECONDS = 600.0
"""A large model is read from disk once for each process."""
NEVER_IDLE = 86400.0
"""Seconds: an idle timeout that is longer than any run."""
REFERENCE_BYTES = 450_000_000
"""What a process with torch and transformers has beside the model's weights."""
FUNCTION_BYTES = 20_000_000
REFERENCE, GATEWAY, FUNCTION, CONTROL_PLANE = "full model", "gateway", "function", "control plane"
LLAMA_CPP = "llama-cpp"
ROLES = (REFERENCE, GATEWAY, FUNCTION, CONTROL_PLANE)
"""Of processes."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model's weights."""

    dense: int
    experts: int
    functions: int
    """How many."""

    @classmethod
    def of(cls, manifest: Manifest) -> "Sizes":
        """Of a partition's."""
        experts = sum(block.nbytes for block in manifest.blocks)
        return cls(manifest.dense.nbytes, experts, len(manifest.blocks))


@dataclass(frozen=True)
class ServingSetup:
    """What is to be served, to whom, and with what."""

    checkpoint: Path
    partition: Path
    """As many functions as are wanted."""
    one_function: Path
    """A partition into a single one."""
    tenants: Sequence[str]
    threads: int
    """Of each process that computes; all have the same cores."""
    cache_tokens: int
    """Whose keys and values each tenant has room for."""
    cache_bytes_per_token: int
    idle_timeout: float
    """Seconds without a call after which a function goes to zero."""
    memory_budget: int | None = None
    """Bytes, for FaaSMoE-Shared: several control planes do not share one."""
    llama_server: str | None = None
    """llama.cpp's program, where it is installed."""


@dataclass(frozen=True)
class Deployment:
    """A strategy that serves."""

    endpoints: Mapping[str, Endpoint]
    """By tenant."""
    roots: Sequence[Root]
    control_planes: Sequence[str] = ()
    """Addresses of those that have the functions' metrics."""
    files: Sequence[Path] = ()
    """That it reads weights from."""


@dataclass(frozen=True)
class Strategy:
    """One way to serve."""

    name: str
    title: str
    serve: Callable[[ServingSetup], AbstractAsyncContextManager[Deployment]]
    needs: Callable[[Sizes, int], int]
    """The least memory, in bytes, for so many tenants."""


@asynccontextmanager
async def _full_models(service: ServingSetup, groups: Sequence[Sequence[str]]) -> AsyncIterator[Deployment]:
    """A process with the whole model for each group of tenants."""
    endpoints: dict[str, Endpoint] = {}
    roots = []
    async with AsyncExitStack() as stack:
        for tenants in groups:
            options = ("--threads", service.threads, "--cache-tokens", service.cache_tokens * len(tenants))
            pid, url = await stack.enter_async_context(
                processes.running(
                    service.checkpoint,
                    *options,
                    module="bench.comparison.reference_server",
                    start_seconds=READY_SECONDS,
                )
            )
            endpoints |= {tenant: Endpoint(url) for tenant in tenants}
            roots.append(Root(pid, REFERENCE, REFERENCE))
        yield Deployment(endpoints, roots, files=weights(service.checkpoint))


def _baseline(service: ServingSetup) -> AbstractAsyncContextManager[Deployment]:
    return _full_models(service, [[tenant] for tenant in service.tenants])


def _shared_model(service: ServingSetup) -> AbstractAsyncContextManager[Deployment]:
    return _full_models(service, [service.tenants])


@asynccontextmanager
async def _llama_cpp(service: ServingSetup) -> AsyncIterator[Deployment]:
    assert service.llama_server is not None
    gguf = service.partition.parent / "model.gguf"
    cache_tokens = service.cache_tokens * len(service.tenants)
    server = llama_cpp_server(
        service.llama_server, service.checkpoint, gguf, service.threads, cache_tokens, READY_SECONDS
    )
    async with server as (pid, url):
        endpoints = dict.fromkeys(service.tenants, Endpoint(url, tell_tokens=("return_tokens", "verbose")))
        yield Deployment(endpoints, [Root(pid, REFERENCE, REFERENCE)], files=[gguf])


@asynccontextmanager
async def _control_planes(
    service: ServingSetup,
    folder: Path,
    groups: Sequence[Sequence[str]],
    idle_timeout: float,
    memory_budget: int | None = None,
) -> AsyncIterator[Deployment]:
    """A control plane for each group of tenants, over the functions of one partition."""
    endpoints: dict[str, Endpoint] = {}
    control_planes = []
    async with AsyncExitStack() as stack:
        gateway_pid, gateway = await stack.enter_async_context(processes.gateway(folder))
        roots = [Root(gateway_pid, GATEWAY, FUNCTION)]
        for tenants in groups:
            cache_bytes = service.cache_tokens * len(tenants) * service.cache_bytes_per_token
            settings = {
                "threads": service.threads,
                "kv_cache_mb": -(-cache_bytes // (1 << 20)),
                "idle_timeout": idle_timeout,
                **({} if memory_budget is None else {"memory_budget": memory_budget}),
            }
            pid, url, keys = await stack.enter_async_context(
                processes.control_plane(folder, gateway, tenants, settings)
            )
            endpoints |= {tenant: Endpoint(url, key) for tenant, key in keys.items()}
            control_planes.append(url)
            roots.append(Root(pid, CONTROL_PLANE, CONTROL_PLANE))
        yield Deployment(endpoints, roots, control_planes, weights(folder))


def _local(service: ServingSetup) -> AbstractAsyncContextManager[Deployment]:
    # Its one server with all experts is always there.
    groups = [[tenant] for tenant in service.tenants]
    return _control_planes(service, service.one_function, groups, NEVER_IDLE)


def _shared(service: ServingSetup) -> AbstractAsyncContextManager[Deployment]:
    options = service.idle_timeout, service.memory_budget
    return _control_planes(service, service.partition, [service.tenants], *options)


def _private(service: ServingSetup) -> AbstractAsyncContextManager[Deployment]:
    groups = [[tenant] for tenant in service.tenants]
    return _control_planes(service, service.partition, groups, service.idle_timeout)


def _full_model_bytes(sizes: Sizes) -> int:
    return sizes.dense + sizes.experts + REFERENCE_BYTES


def _shared_bytes(sizes: Sizes, control_planes: int, functions: int) -> int:
    return control_planes * (sizes.dense + REFERENCE_BYTES) + sizes.experts + functions * FUNCTION_BYTES


STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy(
            "baseline",
            "Baseline: a full model per tenant",
            _baseline,
            lambda sizes, tenants: tenants * _full_model_bytes(sizes),
        ),
        Strategy(
            "shared-model",
            "One full model, shared",
            _shared_model,
            lambda sizes, _: _full_model_bytes(sizes),
        ),
        Strategy(
            "local",
            "Local Distribution",
            _local,
            lambda sizes, tenants: _shared_bytes(sizes, tenants, 1),
        ),
        Strategy(
            "faasmoe-shared",
            "FaaSMoE-Shared",
            _shared,
            lambda sizes, _: _shared_bytes(sizes, 1, sizes.functions),
        ),
        Strategy(
            "faasmoe-private",
            "FaaSMoE-Private",
            _private,
            lambda sizes, tenants: _shared_bytes(sizes, tenants, sizes.functions),
        ),
        Strategy(
            LLAMA_CPP,
            "llama.cpp's server, shared",
            _llama_cpp,
            lambda sizes, _: sizes.dense + sizes.experts,
        ),
    )
}
"""By name, in the order in which they are measured and shown."""


def read_strategies(names: Sequence[str], llama_server: str | None = None) -> list[Strategy]:
    """Those of these names; "all" is every one whose program is installed. Raises `ConfigError`."""
    if unknown := [name for name in names if name not in STRATEGIES and name != "all"]:
        raise ConfigError(f"no strategy {unknown[0]!r}; there are all, {', '.join(STRATEGIES)}")
    if LLAMA_CPP in names and not llama_server:
        raise ConfigError(f"{LLAMA_CPP} needs llama.cpp's llama-server: on the PATH, or by --llama-server")
    installed = [name for name in STRATEGIES if name != LLAMA_CPP or llama_server]
    return [STRATEGIES[name] for name in installed if name in names or "all" in names]


def weights(folder: Path) -> list[Path]:
    """The files that a checkpoint's or a partition's weights are in."""
    return sorted(folder.rglob("*.safetensors"))

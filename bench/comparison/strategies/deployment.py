"""Starts the processes of each way to serve: full models, llama.cpp's server, or FaaSMoE's control planes."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.comparison.measuring.replay import Endpoint
from bench.comparison.measuring.resources import Root
from bench.comparison.strategies.llama_cpp_server import llama_cpp_server
from bench.support import processes

READY_SECONDS = 600.0
"""Each process reads its whole model from disk before it is ready."""
FULL_MODEL, GATEWAY, FUNCTION, CONTROL_PLANE = "full model", "gateway", "function", "control plane"
ROLES = (FULL_MODEL, GATEWAY, FUNCTION, CONTROL_PLANE)
"""All roles of processes in a strategy."""


@dataclass(frozen=True)
class ServingSetup:
    """The model, the tenants, and the limits that all strategies have in common."""

    checkpoint: Path
    partition: Path
    """Partition of the checkpoint into functions of the size to measure."""
    one_function: Path
    """Partition of the checkpoint into a single function."""
    tenants: Sequence[str]
    threads: int
    """Threads of each process that computes; all processes share the same cores."""
    cache_tokens: int
    """Size of the KV cache for each tenant."""
    cache_bytes_per_token: int
    idle_timeout: float
    """Seconds without a call after which a function scales to zero."""
    memory_budget: int | None = None
    """Bytes, for FaaSMoE-Shared only: several control planes do not share one budget."""
    llama_server: str | None = None
    """llama.cpp's server program; None if it is not installed."""


@dataclass(frozen=True)
class Deployment:
    """The running processes of a strategy."""

    endpoints: Mapping[str, Endpoint]
    """The endpoint of each tenant, by name."""
    roots: Sequence[Root]
    control_planes: Sequence[str] = ()
    """Addresses of the control planes, which have the functions' metrics."""
    files: Sequence[Path] = ()
    """Files that the processes read weights from."""


@asynccontextmanager
async def full_models(setup: ServingSetup, groups: Sequence[Sequence[str]]) -> AsyncIterator[Deployment]:
    """A process with the full model for each group of tenants."""
    endpoints: dict[str, Endpoint] = {}
    roots = []
    async with AsyncExitStack() as stack:
        for tenants in groups:
            options = ("--threads", setup.threads, "--cache-tokens", setup.cache_tokens * len(tenants))
            pid, url = await stack.enter_async_context(
                processes.running(
                    setup.checkpoint,
                    *options,
                    module="bench.comparison.strategies.reference_server",
                    start_seconds=READY_SECONDS,
                )
            )
            endpoints |= {tenant: Endpoint(url) for tenant in tenants}
            roots.append(Root(pid, FULL_MODEL, FULL_MODEL))
        yield Deployment(endpoints, roots, files=weight_files(setup.checkpoint))


@asynccontextmanager
async def llama_cpp(setup: ServingSetup) -> AsyncIterator[Deployment]:
    """One llama.cpp server for all tenants. `setup.llama_server` must be set."""
    assert setup.llama_server is not None
    gguf = setup.partition.parent / "model.gguf"
    cache_tokens = setup.cache_tokens * len(setup.tenants)
    server = llama_cpp_server(
        setup.llama_server, setup.checkpoint, gguf, setup.threads, cache_tokens, READY_SECONDS
    )
    async with server as (pid, url):
        endpoint = Endpoint(url, token_id_fields=("return_tokens", "verbose"))
        yield Deployment(
            dict.fromkeys(setup.tenants, endpoint), [Root(pid, FULL_MODEL, FULL_MODEL)], files=[gguf]
        )


@asynccontextmanager
async def control_planes(
    setup: ServingSetup,
    partition: Path,
    groups: Sequence[Sequence[str]],
    idle_timeout: float,
    memory_budget: int | None = None,
) -> AsyncIterator[Deployment]:
    """A control plane for each group of tenants; all share the functions of one partition."""
    endpoints: dict[str, Endpoint] = {}
    urls = []
    async with AsyncExitStack() as stack:
        gateway_pid, gateway = await stack.enter_async_context(processes.gateway(partition))
        roots = [Root(gateway_pid, GATEWAY, FUNCTION)]
        for tenants in groups:
            cache_bytes = setup.cache_tokens * len(tenants) * setup.cache_bytes_per_token
            settings = {
                "threads": setup.threads,
                "kv_cache_mb": -(-cache_bytes // (1 << 20)),
                "idle_timeout": idle_timeout,
                **({} if memory_budget is None else {"memory_budget": memory_budget}),
            }
            pid, url, keys = await stack.enter_async_context(
                processes.control_plane(partition, gateway, tenants, settings)
            )
            endpoints |= {tenant: Endpoint(url, key) for tenant, key in keys.items()}
            urls.append(url)
            roots.append(Root(pid, CONTROL_PLANE, CONTROL_PLANE))
        yield Deployment(endpoints, roots, urls, weight_files(partition))


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a checkpoint or a partition."""
    return sorted(folder.rglob("*.safetensors"))

"""Serves one model from one process: embedded gateway, functions and control plane."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from yarl import URL

from control_plane.app import control_plane
from control_plane.autoscaling.awake import awake_interval
from control_plane.config import ServeConfig
from control_plane.deployment.deploy import deploy_all
from control_plane.faas.client import Gateway
from control_plane.faas.gateway_access import GatewayAccess, random_function_secret
from control_plane.gateway import embedded_gateway, fork_servers
from control_plane.partition.checkpoint.gguf.files import model_name
from control_plane.partition.companions import update_companions
from control_plane.partition.manifest import Manifest
from control_plane.partition.partitioner import partition
from functions.contract.manifest import MANIFEST_FILE


@asynccontextmanager
async def running(
    folder: Path, config: ServeConfig, gateway_port: int, say: Callable[[str], object]
) -> AsyncIterator[URL]:
    """Serve the partition in `folder`; yields the address of its API. `say` gets a line for each stage.

    Raises `PartitionError`, or `ConfigError` for a port in use.
    """
    # The gateway does not see calls that go straight to a function, so it learns of them later than the
    # autoscaler. Its own time limit is longer, so that it does not put a busy function to sleep.
    idle_after = config.idle_timeout + awake_interval(config.idle_timeout)
    servers = fork_servers()
    embedded = embedded_gateway(folder, "127.0.0.1", gateway_port, None, idle_after, servers=servers)
    async with embedded as gateway_url:
        say(f"gateway on {gateway_url}")
        # A new one each time: the gateway remembers nothing.
        secret = random_function_secret()
        async with Gateway.connect(gateway_url, None) as gateway:
            manifest = Manifest.load(folder)
            changes = [change async for change in deploy_all(manifest, [gateway], secret=secret)]
        say(f"deployed {len(changes)} functions")
        access = [GatewayAccess(gateway_url)]
        async with control_plane(folder, config, access, secret, servers.memory_bytes) as url:
            yield url


def partition_of(
    model: Path, say: Callable[[str], object], name: str | None = None, folder: Path | None = None
) -> Path:
    """The folder of a model's partition: `model` itself, or `folder`, which is made if it is missing.

    By default, `folder` is MODEL.faasmoe, and the name is that of the model's folder or file.
    Small files of the model that have changed are copied into it again. Raises `PartitionError`, also for a
    partition that is older than the model's weights.
    """
    if (model / MANIFEST_FILE).exists():
        return model
    folder = folder or model.absolute().with_name(model_name(model.absolute()) + ".faasmoe")
    if not folder.exists():
        say(f"partitioning {model} into {folder}")
        partition(model, folder, name=name)
    elif changed := update_companions(model, folder):
        say(f"updated {', '.join(changed)} in {folder}")
    return folder

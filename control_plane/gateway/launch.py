"""Runs an embedded gateway for the functions of one partition."""

import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from yarl import URL

from control_plane.faas.gateway_access import Credentials
from control_plane.gateway.app import create_app
from control_plane.gateway.deployment_file import DeploymentFile
from control_plane.gateway.provider.emulation import OWN, EmulatedBehaviour
from control_plane.gateway.provider.forking.fork_servers import ForkServers
from control_plane.gateway.provider.image import LocalImage
from control_plane.gateway.provider.provider import LocalProvider
from control_plane.gateway.provider.secret_store import SecretStore
from control_plane.http import check_open_files, serving
from control_plane.partition.manifest import Manifest
from functions.contract.process import (
    FUNCTION_VARIABLE,
    HOST_VARIABLE,
    IDLE_EXIT_VARIABLE,
    PARTITION_VARIABLE,
    PORT_VARIABLE,
    THREADS_VARIABLE,
)
from functions.contract.secret import OPEN_VARIABLE
from functions.host.sockets import is_loopback

SETTINGS = (
    FUNCTION_VARIABLE,
    IDLE_EXIT_VARIABLE,
    THREADS_VARIABLE,
    PARTITION_VARIABLE,
    HOST_VARIABLE,
    PORT_VARIABLE,
    OPEN_VARIABLE,
)
"""The variables that a deployment may set. Stack files set partition, host and port, without effect here."""

_PROGRAM = "functions.expert"
_PYTHON = (sys.executable, "-P", "-m")
"""-P: never run code of the current folder, such as the `functions` that `faasmoe stack` writes there."""


def fork_servers() -> ForkServers:
    """Have imported what functions need, and fork the functions of a gateway."""
    server = "functions.host.fork_server"
    return ForkServers((*_PYTHON, server, f"{_PROGRAM}.__main__", f"{_PROGRAM}.function_process"))


@asynccontextmanager
async def embedded_gateway(
    partition: Path,
    host: str,
    port: int,
    credentials: Credentials | None,
    idle_after: float,
    behaviour: EmulatedBehaviour = OWN,
    state: Path | None = None,
    servers: ForkServers | None = None,
) -> AsyncIterator[URL]:
    """Run a gateway with one image, the partition's; yields its address. No process outlives the context.

    `idle_after` is in seconds. With a folder for its `state`, it keeps deployments and secrets there, and has
    them again at the next start. `servers` fork the functions; None stands for new `fork_servers`. Raises
    `PartitionError` for a bad partition, `ConfigError` for a port in use or too few open files.
    """
    manifest = Manifest.load(partition)
    check_open_files(len(manifest.blocks))
    image = LocalImage(
        name=manifest.image,
        command=(*_PYTHON, _PROGRAM),
        title=_PROGRAM,
        environment={PARTITION_VARIABLE: str(partition.absolute())},
        settings=SETTINGS,
        functions=frozenset(block.function for block in manifest.blocks),
        verify=lambda function: manifest.verify(partition, function),
        needs_secret=not is_loopback(host),
    )
    file = DeploymentFile(state / "deployments.json") if state else None
    with _secrets_folder(state) as folder:
        remember = file.write if file else None
        provider = LocalProvider(
            image,
            SecretStore(folder),
            idle_after,
            behaviour=behaviour,
            remember=remember,
            fork_servers=servers or fork_servers(),
        )
        async with serving(create_app(provider, credentials, host=host), host, port) as url:
            # Only now: if another gateway has this port, its functions must not be started twice. And at
            # once, before the first request is read.
            if file is not None:
                provider.restore(file.read())
            yield url


@contextmanager
def _secrets_folder(state: Path | None) -> Iterator[Path]:
    """The folder for secrets: in `state`, or a temporary one, which is removed at the end.

    It is created with the first secret: a gateway without secrets leaves nothing behind, even when it is
    killed.
    """
    if state is not None:
        yield state / "secrets"
        return
    folder = Path(tempfile.gettempdir()) / f"faasmoe-secrets-{secrets.token_hex(16)}"
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

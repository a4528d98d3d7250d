"""The embedded gateway of one partition, as an async context."""

import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from yarl import URL

from control_plane.config import Credentials
from control_plane.faas.embedded.local_gateway import create_app
from control_plane.faas.embedded.local_image import LocalImage
from control_plane.faas.embedded.local_provider import LocalProvider
from control_plane.faas.embedded.secret_store import SecretStore
from control_plane.http import serving
from control_plane.partition.manifest import Manifest


@asynccontextmanager
async def embedded_gateway(
    partition: Path, host: str, port: int, credentials: Credentials | None, idle_after: float
) -> AsyncIterator[URL]:
    """Run a gateway whose one image is the partition's; yields its address. No process outlives it.

    Raises `PartitionError` for a bad partition, `ConfigError` for a port in use.
    """
    manifest = Manifest.load(partition)
    image = LocalImage(
        name=manifest.image,
        command=[sys.executable, "-m", "functions.expert"],
        environment={"FAASMOE_PARTITION": str(partition.absolute())},
        functions=frozenset(block.function for block in manifest.blocks),
        verify=lambda function: manifest.verify(partition, function),
    )
    with tempfile.TemporaryDirectory(prefix="faasmoe-secrets-") as secrets:
        provider = LocalProvider(image, SecretStore(Path(secrets)), idle_after)
        async with serving(create_app(provider, credentials), host, port) as url:
            yield url

"""Deploys a partition's functions to a gateway."""

from collections.abc import AsyncIterator
from pathlib import Path

from yarl import URL

from control_plane.config import Credentials
from control_plane.faas.gateway import Gateway
from control_plane.faas.types import FunctionDeployment
from control_plane.partition.manifest import Manifest
from control_plane.partition.stack import deployments


async def deploy_all(manifest: Manifest, gateway: Gateway, image_prefix: str = "") -> AsyncIterator[str]:
    """Create or update each function; yields its name when that is done. Raises `GatewayError`."""
    for deployment in map(FunctionDeployment.from_json, deployments(manifest, image_prefix)):
        await gateway.deploy(deployment)
        yield deployment.service


async def missing_functions(partition: Path, url: URL, credentials: Credentials | None) -> list[str]:
    """The partition's functions that a gateway lacks. Raises `GatewayError` if it is away or refuses."""
    async with Gateway.connect(url, credentials) as gateway:
        deployed = {function.name for function in await gateway.functions()}
    return [block.function for block in Manifest.load(partition).blocks if block.function not in deployed]

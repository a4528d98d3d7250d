"""Deploys a partition's functions to a gateway."""

from collections.abc import AsyncIterator

from control_plane.faas.gateway import Gateway
from control_plane.faas.types import FunctionDeployment
from control_plane.partition.manifest import Manifest
from control_plane.partition.stack import deployments


async def deploy_all(manifest: Manifest, gateway: Gateway, image_prefix: str = "") -> AsyncIterator[str]:
    """Create or update each function; yields its name when that is done. Raises `GatewayError`."""
    for deployment in map(FunctionDeployment.from_json, deployments(manifest, image_prefix)):
        await gateway.deploy(deployment)
        yield deployment.service

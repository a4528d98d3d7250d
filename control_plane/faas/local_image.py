"""The one image that the embedded provider has: the functions of one partition."""

import asyncio
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from control_plane.errors import ConfigError
from control_plane.faas.types import FunctionDeployment

FUNCTION = "FAASMOE_FUNCTION"
"""The variable that says which expert block a function serves."""

_INHERITED = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH")


@dataclass(frozen=True)
class LocalImage:
    """What a container image is elsewhere: a name, a program, and what it can be run as.

    `verify` is given the FAASMOE_FUNCTION of a deployment, may read a whole block, and raises
    PartitionError if the block is damaged.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    functions: Collection[str]
    verify: Callable[[str], None]

    async def check(self, deployment: FunctionDeployment) -> None:
        """Raises ConfigError if this image cannot run the function, PartitionError if its block is damaged."""
        function = deployment.env_vars.get(FUNCTION, "")
        if deployment.image != self.name:
            raise ConfigError(f"no image {deployment.image!r} here, only {self.name!r}")
        if function not in self.functions:
            raise ConfigError(f"{FUNCTION}: this partition has no function {function!r}")
        await asyncio.to_thread(self.verify, function)

    def environment_of(self, deployment: FunctionDeployment) -> dict[str, str]:
        """All variables of a function's process. The image's own win: a stack file names a container's paths."""
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        return {**inherited, "PYTHONUNBUFFERED": "1", **deployment.env_vars, **self.environment}

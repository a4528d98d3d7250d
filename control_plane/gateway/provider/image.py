"""The one image that the embedded provider has: the functions of one partition."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from control_plane.errors import ConfigError
from control_plane.faas.types import FunctionDeployment
from functions.contract.process import FUNCTION_VARIABLE


@dataclass(frozen=True)
class LocalImage:
    """What a container image is elsewhere: a name, a program with its variables, and what it can be run as.

    `functions` are the values of FAASMOE_FUNCTION that there are. `verify` is given the one of a deployment,
    may read a whole block, and raises PartitionError if the block is damaged.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    functions: Collection[str]
    settings: Collection[str]
    """The variables that a deployment may set."""
    verify: Callable[[str], None]

    async def check(self, deployment: FunctionDeployment) -> None:
        """Raises ConfigError for what this image cannot run, PartitionError for a damaged block."""
        function = deployment.env_vars.get(FUNCTION_VARIABLE, "")
        if deployment.image != self.name:
            raise ConfigError(f"no image {deployment.image!r} here, only {self.name!r}")
        if function not in self.functions:
            raise ConfigError(f"{FUNCTION_VARIABLE}: this partition has no function {function!r}")
        for name, value in deployment.env_vars.items():
            # Others could have the process run anything: LD_PRELOAD, PYTHONPATH and their like.
            if name not in self.settings or "\0" in value:
                raise ConfigError(f"envVars: not a setting of this image: {name!r}")
        await asyncio.to_thread(self.verify, function)

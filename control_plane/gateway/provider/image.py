"""The one image of the embedded provider: the functions of one partition."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from control_plane.errors import ConfigError
from control_plane.faas.types import FunctionDeployment
from control_plane.validation import MAX_QUOTED
from functions.contract.process import FUNCTION_VARIABLE
from functions.contract.secret import OPEN_VARIABLE, SECRET_NAME


@dataclass(frozen=True)
class LocalImage:
    """The counterpart of a container image: its name, its program, and that program's environment variables.

    `functions` are the values that FAASMOE_FUNCTION may have. `verify` is called with the value of a
    deployment; it may read a whole block, and raises PartitionError if the block is damaged.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    functions: Collection[str]
    settings: Collection[str]
    """The variables that a deployment may set."""
    verify: Callable[[str], None]
    title: str = "function"
    """What lists of processes show of one that was forked, before the function's name."""
    needs_secret: bool = False
    """Whether a deployment has to use the functions' secret, unless it is declared open to everybody."""

    def check(self, deployment: FunctionDeployment) -> None:
        """Raise ConfigError if this image cannot run a deployment."""
        function = deployment.env_vars.get(FUNCTION_VARIABLE, "")
        if deployment.image != self.name:
            raise ConfigError(f"no image {deployment.image[:MAX_QUOTED]!r} here, only {self.name!r}")
        if function not in self.functions:
            raise ConfigError(
                f"{FUNCTION_VARIABLE}: this partition has no function {function[:MAX_QUOTED]!r}"
            )
        is_open = deployment.env_vars.get(OPEN_VARIABLE) == "1"
        if self.needs_secret and SECRET_NAME not in deployment.secrets and not is_open:
            raise ConfigError(
                f"other machines reach this gateway, so functions need the secret {SECRET_NAME}, or "
                f"{OPEN_VARIABLE}=1 if everybody may call them"
            )
        for name, value in deployment.env_vars.items():
            # Variables such as LD_PRELOAD or PYTHONPATH could make the process run any code.
            if name not in self.settings:
                raise ConfigError(f"envVars: not a setting of this image: {name[:MAX_QUOTED]!r}")
            if not value.isprintable():
                raise ConfigError(f"envVars: not a value of {name}: {value[:MAX_QUOTED]!r}")

    async def check_block(self, deployment: FunctionDeployment) -> None:
        """Raise PartitionError if the block of a deployment is damaged."""
        await asyncio.to_thread(self.verify, deployment.env_vars[FUNCTION_VARIABLE])

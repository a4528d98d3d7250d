"""The embedded FaaS provider: OpenFaaS functions as processes of this machine."""

import asyncio
import re
from contextlib import AbstractAsyncContextManager
from typing import Self

from msgspec.structs import replace

from control_plane.errors import ConfigError, FunctionNotFound, FunctionUnavailable
from control_plane.faas.types import DEFAULT_NAMESPACE, FunctionDeployment, FunctionStatus
from control_plane.gateway.emulation import OWN, EmulatedBehaviour
from control_plane.gateway.provider.function import LocalFunction
from control_plane.gateway.provider.image import LocalImage
from control_plane.gateway.provider.log import FunctionLog
from control_plane.gateway.provider.process import DEFAULT_TIMEOUTS, FunctionProcess, Timeouts
from control_plane.gateway.provider.scaling_labels import ScalingLabels, check_replicas
from control_plane.gateway.provider.secret_store import SecretStore
from control_plane.gateway.provider.starter import FunctionStarter

DEFAULT_IDLE_AFTER_S = 900.0

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class LocalProvider:
    """The functions deployed here, by name. An async context: on leaving it, no process is left.

    Deployments are forgotten with it. Resource limits, constraints and `envProcess` are shown, not enforced.

    Args:
        image: the one image that functions can be deployed from.
        secrets: where secrets are kept.
        idle_after: seconds without a call after which a function that may scale to zero does,
            unless its label com.openfaas.scale.zero-duration says otherwise.
        timeouts: the deadlines of all functions.
        behaviour: what is done as another gateway does it.
    """

    def __init__(
        self,
        image: LocalImage,
        secrets: SecretStore,
        idle_after: float = DEFAULT_IDLE_AFTER_S,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        behaviour: EmulatedBehaviour = OWN,
    ) -> None:
        self.secrets = secrets
        self.timeouts = timeouts
        self.behaviour = behaviour
        self._image = image
        self._idle_after = idle_after
        self._starter = FunctionStarter(image, secrets, timeouts)
        self._functions: dict[str, LocalFunction] = {}
        self._deploying = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(function.close() for function in self._functions.values()))
        self._functions.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._functions

    async def deploy(self, deployment: FunctionDeployment) -> None:
        """Add a function, and begin to start it; returns before it is ready.

        Raises ConfigError for a name in use or a specification that cannot be met, PartitionError if the
        function's block is damaged.
        """
        async with self._deploying:
            if deployment.service in self._functions:
                raise ConfigError(f"function {deployment.service} exists already")
            if len(self._functions) == self.behaviour.max_functions:
                raise ConfigError(f"this edition allows {self.behaviour.max_functions} functions")
            scaling = await self._check(deployment)
            deployment = replace(deployment, namespace=DEFAULT_NAMESPACE)
            self._functions[deployment.service] = LocalFunction(deployment, scaling, self._starter)

    async def update(self, deployment: FunctionDeployment) -> None:
        """Change a function; calls in flight end as they began. Raises like deploy, and FunctionNotFound."""
        async with self._deploying:
            function = self._function(deployment.service)
            scaling = await self._check(deployment)
            function.update(replace(deployment, namespace=DEFAULT_NAMESPACE), scaling)

    async def remove(self, name: str) -> None:
        """Forget a function; returns when its process has exited. Raises FunctionNotFound."""
        async with self._deploying:
            function = self._function(name)
            del self._functions[name]
        await function.close()

    async def scale(self, name: str, replicas: int) -> None:
        """Begin to start a function (1), or end its process (0), which has then exited.

        Raises FunctionNotFound, and ConfigError for other numbers.
        """
        function = self._function(name)
        if not replicas and not self.behaviour.scales_to_zero:
            raise ConfigError("this edition does not scale to zero")
        function.scale(check_replicas(replicas))
        if not replicas:
            await function.ended()

    def wake(self, name: str) -> None:
        """Begin to start a function that has no process. Raises FunctionNotFound.

        One that keeps crashing is left alone for a while; that raises FunctionUnavailable.
        """
        self._function(name).wake()

    def lease(self, name: str) -> AbstractAsyncContextManager[FunctionProcess]:
        """A ready process for one call; see LocalFunction.lease. Raises FunctionNotFound."""
        return self._function(name).lease()

    def peek(self, name: str) -> FunctionProcess:
        """The process that is there, for what is no invocation: it starts nothing and counts as no use.

        Raises FunctionNotFound, and FunctionUnavailable if there is none.
        """
        process = self._function(name).process
        if process is None:
            raise FunctionUnavailable(f"function {name} is not running")
        return process

    def describe(self, name: str) -> FunctionStatus:
        """Raises FunctionNotFound."""
        return self._function(name).status()

    def describe_all(self) -> list[FunctionStatus]:
        return [self._functions[name].status() for name in sorted(self._functions)]

    def replicas(self) -> dict[str, int]:
        """The wanted replicas of all functions."""
        return {name: function.replicas for name, function in self._functions.items()}

    def log(self, name: str) -> FunctionLog:
        """Raises FunctionNotFound."""
        return self._function(name).log

    def end_log_streams(self) -> None:
        """Let those who follow a log go, before the gateway stops."""
        for function in self._functions.values():
            function.log.close()

    def _function(self, name: str) -> LocalFunction:
        try:
            return self._functions[name]
        except KeyError:
            raise FunctionNotFound(f"function {name} not found") from None

    async def _check(self, deployment: FunctionDeployment) -> ScalingLabels:
        if not _NAME.fullmatch(deployment.service):
            raise ConfigError(f"not a function's name: {deployment.service!r}")
        scaling = ScalingLabels.parse(deployment.labels, self._idle_after)
        for secret in deployment.secrets:
            if secret not in self.secrets:
                raise ConfigError(f"unable to find secret: {secret}")
        await self._image.check(deployment)
        return scaling if self.behaviour.scales_to_zero else ScalingLabels(1, None)

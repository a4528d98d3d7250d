"""The embedded FaaS provider, which runs OpenFaaS functions as processes of this machine."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Self

from msgspec.structs import replace

from control_plane.errors import ConfigError, FaaSMoEError, FunctionNotFound, FunctionUnavailable
from control_plane.faas.types import DEFAULT_NAMESPACE, FunctionDeployment, FunctionStatus
from control_plane.gateway.provider.emulation import OWN, EmulatedBehaviour
from control_plane.gateway.provider.forking.fork_servers import ForkServers
from control_plane.gateway.provider.function import LocalFunction
from control_plane.gateway.provider.image import LocalImage
from control_plane.gateway.provider.log import FunctionLog
from control_plane.gateway.provider.process import DEFAULT_TIMEOUTS, FunctionProcess, Timeouts
from control_plane.gateway.provider.scaling_labels import ScalingLabels, check_replicas
from control_plane.gateway.provider.secret_store import SecretStore
from control_plane.gateway.provider.starter import FunctionStarter
from control_plane.gateway.provider.vanishing import VanishedSockets, handles_sigterm
from control_plane.partition.partition_files import FUNCTION_NAME
from control_plane.validation import MAX_QUOTED

DEFAULT_IDLE_AFTER_S = 900.0
MAX_FUNCTIONS = 4096
"""More than the experts of most models."""

_logger = logging.getLogger(__name__)


class LocalProvider:
    """The deployed functions by name. An async context manager, whose exit ends all processes.

    Resource limits, constraints and `envProcess` are listed, but have no effect.

    Args:
        image: the only image that functions can be deployed from.
        secrets: the store of secrets.
        idle_after: seconds without a call after which a function is scaled to zero, if its labels allow it;
            the label com.openfaas.scale.zero-duration overrides this.
        timeouts: the deadlines of all functions.
        behaviour: the gateway to emulate.
        remember: stores all functions, for `restore`. It is called in a thread after each change that a
            client has asked for; not when a call wakes a function, or idleness puts it to sleep.
        fork_servers: start processes faster than the image's program, which they have imported.
    """

    def __init__(
        self,
        image: LocalImage,
        secrets: SecretStore,
        idle_after: float = DEFAULT_IDLE_AFTER_S,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        behaviour: EmulatedBehaviour = OWN,
        remember: Callable[[Sequence[FunctionStatus]], None] | None = None,
        fork_servers: ForkServers | None = None,
    ) -> None:
        self.secrets = secrets
        self.timeouts = timeouts
        self.behaviour = behaviour
        self.away = False
        """Set by tests of callers: the gateway finds no provider, and answers 404 to everything."""
        self._image = image
        self._idle_after = idle_after
        self._vanished = VanishedSockets() if behaviour.vanishes else None
        self._fork_servers = fork_servers
        self._starter = FunctionStarter(image, secrets, timeouts, fork_servers, self._vanished)
        self._functions: dict[str, LocalFunction] = {}
        self._deploying = asyncio.Lock()
        self._remember = remember
        self._remembering = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        async with self._remembering:
            self._remember = None
        await asyncio.gather(*(function.close() for function in self._functions.values()))
        self._functions.clear()
        if self._fork_servers is not None:
            await self._fork_servers.close()
        if self._vanished is not None:
            self._vanished.close()

    def __contains__(self, name: str) -> bool:
        return name in self._functions

    def restore(self, functions: Iterable[FunctionStatus]) -> None:
        """Add functions that were remembered, without those that this provider cannot run any more.

        Their blocks were verified when they were deployed.
        """
        for wanted in functions:
            deployment = wanted.deployment
            try:
                scaling = self._check(deployment)
                replicas = check_replicas(wanted.replicas) if self.behaviour.scales_to_zero else 1
            except ConfigError as error:
                _logger.warning("function %s is not restored: %s", deployment.service, error)
                continue
            self._functions[deployment.service] = LocalFunction(deployment, scaling, self._starter, replicas)

    async def deploy(self, deployment: FunctionDeployment) -> None:
        """Add a function and begin to start it; returns before it is ready.

        Raises ConfigError for a name in use or a specification that this provider cannot run, PartitionError
        if the function's block is damaged.
        """
        async with self._deploying:
            if deployment.service in self._functions:
                raise ConfigError(f"function {deployment.service} exists already")
            if len(self._functions) >= (self.behaviour.max_functions or MAX_FUNCTIONS):
                raise ConfigError(f"this edition allows {len(self._functions)} functions")
            scaling = self._check(deployment)
            await self._image.check_block(deployment)
            deployment = replace(deployment, namespace=DEFAULT_NAMESPACE)
            self._functions[deployment.service] = LocalFunction(deployment, scaling, self._starter)
            await self._changed()

    async def update(self, deployment: FunctionDeployment) -> None:
        """Change a function; calls in flight finish on the old process.

        Raises FunctionNotFound, and what `deploy` raises.
        """
        async with self._deploying:
            function = self._function(deployment.service)
            scaling = self._check(deployment)
            await self._image.check_block(deployment)
            await self._check_may_end(function)
            function.update(replace(deployment, namespace=DEFAULT_NAMESPACE), scaling)
            await self._changed()

    async def remove(self, name: str) -> None:
        """Remove a function; returns when its process has exited. Raises FunctionNotFound."""
        async with self._deploying:
            function = self._function(name)
            await self._check_may_end(function)
            del self._functions[name]
            await self._changed()
        await function.close()

    async def scale(self, name: str, replicas: int) -> None:
        """Begin to start a function (1), or end its process and wait for its exit (0).

        Raises FunctionNotFound, and ConfigError for other numbers.
        """
        function = self._function(name)
        if not self.behaviour.scales_to_zero:
            replicas = 1
        before = function.replicas
        function.scale(check_replicas(replicas))
        if function.replicas != before:
            await self._changed()
        if not replicas:
            await function.ended()

    def wake(self, name: str) -> None:
        """Begin to start a function that has no process.

        Raises FunctionNotFound, and FunctionUnavailable for a while after repeated crashes.
        """
        self._function(name).wake()

    def lease(self, name: str) -> AbstractAsyncContextManager[FunctionProcess]:
        """A ready process for one call; see LocalFunction.lease. Raises FunctionNotFound."""
        return self._function(name).lease()

    def peek(self, name: str) -> FunctionProcess:
        """The running process, for requests that are no invocations: nothing is started or counted as use.

        Raises FunctionNotFound, and FunctionUnavailable if there is no process.
        """
        process = self._function(name).process
        if process is None:
            raise FunctionUnavailable(f"function {name} is not running")
        return process

    def describe(self, name: str) -> FunctionStatus:
        """The status of a function. Raises FunctionNotFound."""
        return self._function(name).status()

    def describe_all(self) -> list[FunctionStatus]:
        return [self._functions[name].status() for name in sorted(self._functions)]

    def replicas(self) -> dict[str, int]:
        """The wanted replicas of each function."""
        return {name: function.replicas for name, function in self._functions.items()}

    def log(self, name: str) -> FunctionLog:
        """The log of a function. Raises FunctionNotFound."""
        return self._function(name).log

    def end_log_streams(self) -> None:
        """End the streams of all log followers, which would delay the gateway's end."""
        for function in self._functions.values():
            function.log.close()

    def _function(self, name: str) -> LocalFunction:
        try:
            return self._functions[name]
        except KeyError:
            raise FunctionNotFound(f"function {name} not found") from None

    async def _check_may_end(self, function: LocalFunction) -> None:
        """Raise FaaSMoEError after a while if the emulated gateway cannot end a function so soon."""
        seconds, process = self.behaviour.ignored_sigterm_seconds, function.spawned
        if seconds is not None and process is not None and not handles_sigterm(process.pid):
            await process.wait_ended(seconds)
            if process.alive:
                raise FaaSMoEError(f"process {process.pid} did not end within {seconds:g} s")

    async def _changed(self) -> None:
        """Remember all functions; also completed when the client that made the change has gone."""
        await asyncio.shield(asyncio.create_task(self._remember_all()))

    async def _remember_all(self) -> None:
        async with self._remembering:
            if self._remember is not None:
                functions = [function.wanted() for function in self._functions.values()]
                await asyncio.to_thread(self._remember, functions)

    def _check(self, deployment: FunctionDeployment) -> ScalingLabels:
        if not FUNCTION_NAME.fullmatch(deployment.service):
            raise ConfigError(f"not a function's name: {deployment.service[:MAX_QUOTED]!r}")
        scaling = ScalingLabels.parse(deployment.labels, self._idle_after)
        for secret in deployment.secrets:
            if secret not in self.secrets:
                raise ConfigError(f"unable to find secret: {secret[:MAX_QUOTED]}")
        self._image.check(deployment)
        return scaling if self.behaviour.scales_to_zero else ScalingLabels(1, None)

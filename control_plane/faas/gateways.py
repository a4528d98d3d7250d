"""Presents several gateways, each of which has some of a partition's functions, as one."""

import asyncio
from collections.abc import Mapping, Sequence

from control_plane.errors import GatewayError
from control_plane.faas.client import Gateway
from control_plane.faas.connection import Address
from control_plane.faas.types import FunctionDeployment, FunctionStatus
from functions.contract.messages import ResidencyReport


class Gateways:
    """Knows from the gateways' lists which gateway has which function. Calls raise the errors of `Gateway`.

    The event loop updates the locations, and the engine's thread reads them.
    """

    def __init__(self, gateways: Sequence[Gateway], names: frozenset[str]) -> None:
        """`gateways` is not empty; `names` are the partition's functions."""
        self.all = gateways
        self._names = names
        self._locations: Mapping[str, Gateway] = {}
        self._listed: dict[str, FunctionDeployment] = {}
        self.problems: Mapping[str, str] = {}
        """Errors of gateways that failed to list their functions the last time, by URL."""

    def of(self, function: str) -> Gateway:
        """The gateway that has the function; the first gateway if none is known to have it."""
        return self._locations.get(function, self.all[0])

    def address_of(self, function: str) -> Address:
        """The address of the gateway that has the function."""
        return self.of(function).address

    def at(self, gateway: Gateway) -> list[str]:
        """The partition's functions that this gateway has, and those that no gateway has listed yet."""
        return [name for name in sorted(self._names) if self._locations.get(name, gateway) is gateway]

    def listed(self, function: str) -> FunctionDeployment | None:
        """The function's deployment when a gateway last listed it."""
        return self._listed.get(function)

    def is_absent(self, function: str) -> bool:
        """Whether all gateways have answered, and none has listed the function."""
        return bool(self._listed) and not self.problems and function not in self._listed

    def move(self, function: str, gateway: Gateway) -> None:
        """Call the function at this gateway from now on."""
        self._locations = {**self._locations, function: gateway}

    async def functions(self) -> list[FunctionStatus]:
        """The functions of all gateways that answer; each of the partition's functions is listed once.

        Raises the first `GatewayError` when none answers.
        """
        answers = await asyncio.gather(*(_listed(gateway) for gateway in self.all))
        self.problems = {
            str(gateway.url): str(answer)
            for gateway, answer in zip(self.all, answers, strict=True)
            if isinstance(answer, GatewayError)
        }
        listed = {
            gateway: answer
            for gateway, answer in zip(self.all, answers, strict=True)
            if not isinstance(answer, GatewayError)
        }
        if not listed:
            raise next(answer for answer in answers if isinstance(answer, GatewayError))
        self._learn(listed)
        return [
            status
            for gateway, statuses in listed.items()
            for status in statuses
            if status.name not in self._names or self._locations.get(status.name) is gateway
        ]

    async def scale(self, function: str, replicas: int) -> bool:
        """See `Gateway.scale`."""
        return await self.of(function).scale(function, replicas)

    async def limit_residency(self, function: str, nbytes: int) -> ResidencyReport:
        """See `Gateway.limit_residency`."""
        return await self.of(function).limit_residency(function, nbytes)

    async def release_residency(self, function: str) -> ResidencyReport:
        """See `Gateway.release_residency`."""
        return await self.of(function).release_residency(function)

    def _learn(self, listed: Mapping[Gateway, Sequence[FunctionStatus]]) -> None:
        """Update the locations. A function keeps its location unless only another gateway has it now.

        A list may be older than the last move of a function, so that it names the old gateway as well.
        """
        there: dict[str, list[Gateway]] = {}
        for gateway, statuses in listed.items():
            for status in statuses:
                if status.name in self._names:
                    there.setdefault(status.name, []).append(gateway)
                    self._listed[status.name] = status.deployment
        found = {
            name: self._locations[name] if self._keeps(name, gateways, listed) else gateways[0]
            for name, gateways in there.items()
        }
        self._locations = {**self._locations, **found}

    def _keeps(self, name: str, there: Sequence[Gateway], listed: Mapping[Gateway, object]) -> bool:
        """Whether the function's known gateway lists it, or did not answer."""
        known = self._locations.get(name)
        return known is not None and (known in there or known not in listed)


async def _listed(gateway: Gateway) -> Sequence[FunctionStatus] | GatewayError:
    try:
        return await gateway.functions()
    except GatewayError as error:
        return error

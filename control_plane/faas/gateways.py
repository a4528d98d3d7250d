"""Several gateways that hold one partition's functions between them, as one."""

import asyncio
from collections.abc import Mapping, Sequence

from control_plane.errors import GatewayError
from control_plane.faas.client import Gateway
from control_plane.faas.connection import Address
from control_plane.faas.types import FunctionDeployment, FunctionStatus
from functions.contract.messages import ResidencyReport


class Gateways:
    """Knows which function is where, from what the gateways list; each call raises as `Gateway`'s do.

    The event loop writes what is known, and the engine's thread reads it.
    """

    def __init__(self, gateways: Sequence[Gateway], names: frozenset[str]) -> None:
        """`names` are the partition's functions; there is at least one gateway."""
        self.all = gateways
        self._names = names
        self._locations: Mapping[str, Gateway] = {}
        self._listed: dict[str, FunctionDeployment] = {}
        self.problems: Mapping[str, str] = {}
        """By address, why a gateway could not be asked the last time."""

    def of(self, function: str) -> Gateway:
        """The one that has the function; the first where none is known to."""
        return self._locations.get(function, self.all[0])

    def address_of(self, function: str) -> Address:
        """Where that listens."""
        return self.of(function).address

    def at(self, gateway: Gateway) -> list[str]:
        """The functions that are called there, or would be: those that no gateway has told of among them."""
        return [name for name in sorted(self._names) if self._locations.get(name, gateway) is gateway]

    def listed(self, function: str) -> FunctionDeployment | None:
        """As what it was deployed when a gateway last told of it."""
        return self._listed.get(function)

    def move(self, function: str, gateway: Gateway) -> None:
        """It is called there from now on."""
        self._locations = {**self._locations, function: gateway}

    async def functions(self) -> list[FunctionStatus]:
        """What all gateways that answer have, each of the partition's functions once.

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
        """As `Gateway.scale`."""
        return await self.of(function).scale(function, replicas)

    async def limit_residency(self, function: str, nbytes: int) -> ResidencyReport:
        """As `Gateway.limit_residency`."""
        return await self.of(function).limit_residency(function, nbytes)

    async def release_residency(self, function: str) -> ResidencyReport:
        """As `Gateway.release_residency`."""
        return await self.of(function).release_residency(function)

    def _learn(self, listed: Mapping[Gateway, Sequence[FunctionStatus]]) -> None:
        """A function stays where it was known to be, unless only another gateway has it now.

        A list may be older than a move.
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
        """Whether the function is where it was, as far as can be known."""
        known = self._locations.get(name)
        return known is not None and (known in there or known not in listed)


async def _listed(gateway: Gateway) -> Sequence[FunctionStatus] | GatewayError:
    try:
        return await gateway.functions()
    except GatewayError as error:
        return error

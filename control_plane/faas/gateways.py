"""Presents several gateways, each of which has some of a partition's functions, as one."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from math import inf

from control_plane.errors import GatewayError
from control_plane.faas.client import Gateway
from control_plane.faas.connection import Address
from control_plane.faas.gateway_access import GatewayAccess
from control_plane.faas.types import FunctionDeployment, FunctionStatus
from functions.contract.messages import ResidencyReport
from functions.contract.secret import FunctionSecret

ABSENT_SECONDS = 3.0
"""How long lists lack a function before it counts as absent: an update removes it and creates it anew."""
RECENT_SECONDS = 5.0
"""The age of a list that still tells something."""


@dataclass(frozen=True)
class _Absences:
    """The functions that all gateways' successful lists have lacked. Times are of the monotonic clock."""

    since: Mapping[str, float] = field(default_factory=dict)
    """When the first of the lists without the function was asked for."""
    asked: float = -inf
    """When the last lists were asked for."""


class Gateways:
    """Knows from the gateways' lists which gateway has which function. Calls raise the errors of `Gateway`.

    The event loop updates the locations, and the engine's thread reads them.
    """

    def __init__(
        self,
        gateways: Sequence[Gateway],
        names: frozenset[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`gateways` is not empty; `names` are the partition's functions."""
        self.all = gateways
        self._names = names
        self._clock = clock
        self._locations: Mapping[str, Gateway] = {}
        self._listed: dict[str, FunctionDeployment] = {}
        self._listed_at: dict[Gateway, float] = {}
        """The time.time() of each gateway's last successful list."""
        self._held: dict[Gateway, frozenset[str]] = {}
        """The partition's functions in each gateway's last successful list."""
        self._away: set[Gateway] = set()
        """Gateways that have failed to answer since their last successful list."""
        self._lost: Mapping[str, Gateway] = {}
        self._absences = _Absences()
        self.problems: Mapping[str, str] = {}
        """Errors of gateways that failed to list their functions the last time, by URL."""

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, access: Sequence[GatewayAccess], names: Iterable[str], secret: FunctionSecret | None
    ) -> AsyncIterator["Gateways"]:
        """Clients of all gateways, which know where each function is if the gateways answer."""
        async with AsyncExitStack() as stack:
            connected = [await stack.enter_async_context(Gateway.connect(*each, secret)) for each in access]
            gateways = cls(connected, frozenset(names))
            with suppress(GatewayError):
                await gateways.functions()
            yield gateways

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

    def move(self, function: str, gateway: Gateway) -> None:
        """Call the function at this gateway from now on."""
        self._locations = {**self._locations, function: gateway}

    def has_listed_since(self, function: str, when: float) -> bool:
        """Whether the function's gateway has been asked for its list, and sent it, after this time.time()."""
        return self._listed_at.get(self.of(function), 0.0) > when

    def unlisted(self) -> frozenset[str]:
        """The functions whose gateway failed to list its functions the last time."""
        return frozenset(
            name for name, gateway in self._locations.items() if str(gateway.url) in self.problems
        )

    def is_absent(self, function: str) -> bool:
        """Whether all gateways say, for some seconds and until now, that they do not have the function.

        The engine's thread may ask. A function that its gateway has lost is about to be deployed again, and
        does not count.
        """
        absences = self._absences
        since = absences.since.get(function, inf)
        is_recent = self._clock() - absences.asked <= RECENT_SECONDS
        return is_recent and absences.asked - since >= ABSENT_SECONDS

    def failed(self, gateway: Gateway) -> None:
        """The gateway did not answer: it may have been restarted, and have lost its functions."""
        self._away.add(gateway)

    def has_failed(self, gateway: Gateway) -> bool:
        """Whether the gateway has failed to answer since its last successful list."""
        return gateway in self._away

    def lost(self, gateway: Gateway) -> list[str]:
        """The functions that the gateway had before it was away, and has not had since."""
        return [name for name, at in self._lost.items() if at is gateway and self.of(name) is gateway]

    async def functions(self) -> list[FunctionStatus]:
        """The functions of all gateways that answer; each of the partition's functions is listed once.

        Raises the first `GatewayError` when none answers.
        """
        asked, now = self._clock(), time.time()
        answers = await asyncio.gather(*(_listed(gateway) for gateway in self.all))
        listed: dict[Gateway, Sequence[FunctionStatus]] = {}
        failures: dict[Gateway, GatewayError] = {}
        for gateway, answer in zip(self.all, answers, strict=True):
            if isinstance(answer, GatewayError):
                failures[gateway] = answer
            else:
                listed[gateway] = answer
        self.problems = {str(gateway.url): str(failure) for gateway, failure in failures.items()}
        self._away.update(failures)
        self._learn(listed)
        self._listed_at |= dict.fromkeys(listed, now)
        self._learn_absences(asked)
        if not listed:
            raise next(iter(failures.values()))
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

    async def keep_awake(self, function: str, invocation: bytes, seconds: float) -> None:
        """See `Gateway.keep_awake`."""
        await self.of(function).keep_awake(function, invocation, seconds)

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
        for gateway, statuses in listed.items():
            self._learn_losses(gateway, self._names.intersection(status.name for status in statuses))

    def _learn_losses(self, gateway: Gateway, names: frozenset[str]) -> None:
        """Note what a gateway that was away does not have any more; `names` are the functions that it has."""
        lost = {name: at for name, at in self._lost.items() if at is not gateway or name not in names}
        if gateway in self._away:
            lost |= dict.fromkeys(sorted(self._held.get(gateway, frozenset()) - names), gateway)
        self._lost, self._held[gateway] = lost, names
        self._away.discard(gateway)

    def _learn_absences(self, asked: float) -> None:
        if self.problems:
            self._absences = _Absences()
            return
        there = frozenset().union(*self._held.values())
        before = self._absences.since
        absent = {name: before.get(name, asked) for name in self._names - there - self._lost.keys()}
        self._absences = _Absences(absent, asked)

    def _keeps(self, name: str, there: Sequence[Gateway], listed: Mapping[Gateway, object]) -> bool:
        """Whether the function's known gateway lists it, or did not answer."""
        known = self._locations.get(name)
        return known is not None and (known in there or known not in listed)


async def _listed(gateway: Gateway) -> Sequence[FunctionStatus] | GatewayError:
    try:
        return await gateway.functions()
    except GatewayError as error:
        return error

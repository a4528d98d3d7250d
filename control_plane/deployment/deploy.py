"""Deploys a partition's functions to one or several gateways; those that are up to date stay untouched."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from control_plane.deployment.image.contents import MODEL_ANNOTATION
from control_plane.deployment.placement import GatewayCapacity, place
from control_plane.deployment.stack import DIGEST_ANNOTATION, FunctionCallers, deployments
from control_plane.errors import GatewayError
from control_plane.faas.client import Gateway
from control_plane.faas.gateway_access import GatewayAccess
from control_plane.faas.types import FunctionDeployment
from control_plane.partition.manifest import Manifest
from functions.contract.secret import SECRET_NAME, FunctionSecret

_NAME = re.compile(r"(?P<model>.+)-l\d+(-\d+)?-[eg]\d+(-\d+)?")


@dataclass(frozen=True)
class Change:
    """The change that was made to one function on one gateway."""

    function: str
    done: str
    """The kind of change: "created", "updated", "unchanged" or "removed"."""
    gateway: str


@dataclass(frozen=True)
class _Step:
    """One change, and how to make and undo it."""

    change: Change
    apply: Callable[[], Awaitable[None]]
    undo: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True)
class GatewayState:
    """A gateway, the functions that are deployed there, and how many it allows."""

    gateway: Gateway
    deployed: Mapping[str, FunctionDeployment]
    max_functions: int | None

    @classmethod
    async def read(cls, gateway: Gateway) -> "GatewayState":
        """Ask the gateway. Raises `GatewayError`."""
        listed, allowed = await asyncio.gather(gateway.functions(), gateway.max_functions())
        return cls(gateway, {status.name: status.deployment for status in listed}, allowed)

    def capacity(self, leaving: Collection[str] = ()) -> GatewayCapacity:
        """The functions that stay when those of `leaving` are removed, and the room for others."""
        return GatewayCapacity(
            str(self.gateway.url), frozenset(self.deployed).difference(leaving), self.max_functions
        )


async def deploy_all(
    manifest: Manifest,
    gateways: Sequence[Gateway],
    image_prefix: str = "",
    *,
    idle_exit: int | None = None,
    secret: FunctionSecret | None = None,
    open_to_all: bool = False,
    prune: bool = False,
    roll_back: bool = False,
) -> AsyncIterator[Change]:
    """Create or update each function on one of the gateways; yields each change after it was made.

    With a `secret`, the gateways store it, and functions answer only those who have it. Without one,
    functions listen on loopback, unless they are `open_to_all`. `prune` removes this model's functions that
    are no longer in the partition, and second copies on other gateways. `roll_back` undoes all changes if one
    fails. Raises `GatewayError`, and `ConfigError` before any change if the gateways have no room.
    """
    callers = callers_of(secret, open_to_all)
    wanted = {each.service: each for each in deployments(manifest, image_prefix, idle_exit, callers)}
    states = await asyncio.gather(*map(GatewayState.read, gateways))
    steps = list(_steps(manifest, wanted, states, prune))
    if secret is not None:
        await asyncio.gather(*(gateway.store_secret(SECRET_NAME, secret.value) for gateway in gateways))
    begun: list[_Step] = []
    for step in steps:
        # Before the step: even a failed one may have changed something.
        begun.append(step)
        try:
            await step.apply()
        except GatewayError:
            if roll_back:
                await _roll_back(begun)
            raise
        yield step.change


async def missing_functions(manifest: Manifest, gateways: Sequence[GatewayAccess]) -> list[str]:
    """The partition's functions that are on none of the gateways.

    Raises `GatewayError` if no gateway answers.
    """
    deployed: set[str] = set()
    failures = []
    for access in gateways:
        async with Gateway.connect(*access) as gateway:
            try:
                deployed |= {function.name for function in await gateway.functions()}
            except GatewayError as error:
                failures.append(error)
    if len(failures) == len(gateways):
        raise failures[0]
    return [block.function for block in manifest.blocks if block.function not in deployed]


def deployment_of(
    manifest: Manifest, function: str, image_prefix: str, secret: FunctionSecret | None
) -> FunctionDeployment:
    """The deployment of one of the partition's functions."""
    all_of_them = deployments(manifest, image_prefix, callers=callers_of(secret))
    return next(each for each in all_of_them if each.service == function)


def callers_of(secret: FunctionSecret | None, open_to_all: bool = False) -> FunctionCallers:
    """Who may call functions that are deployed with this secret, or without one."""
    if secret is not None:
        return FunctionCallers.WITH_SECRET
    return FunctionCallers.ANYBODY if open_to_all else FunctionCallers.ON_LOOPBACK


def _steps(
    manifest: Manifest,
    wanted: Mapping[str, FunctionDeployment],
    states: Sequence[GatewayState],
    prune: bool,
) -> Iterator[_Step]:
    obsolete = [_obsolete(state.deployed, wanted) if prune else [] for state in states]
    capacities = [state.capacity(leaving) for state, leaving in zip(states, obsolete, strict=True)]
    sizes = {block.function: block.nbytes for block in manifest.blocks}
    places = place(sizes, capacities)
    for state, old, new in zip(states, obsolete, places, strict=True):
        strays = [name for name in wanted if name in state.deployed and name not in new] if prune else []
        removals = [_removal(state, name) for name in (*old, *strays)]
        additions = [_addition(state, wanted[name]) for name in new]
        limit = state.max_functions
        tight = limit is not None and len(state.deployed.keys() | set(new)) > limit
        # Old functions serve until the new ones are there, unless the gateway's limit forbids both at once.
        yield from (*removals, *additions) if tight else (*additions, *removals)


def _addition(state: GatewayState, deployment: FunctionDeployment) -> _Step:
    gateway, name = state.gateway, deployment.service
    url = str(gateway.url)
    before = state.deployed.get(name)
    if before is None:
        return _Step(
            Change(name, "created", url),
            partial(gateway.deploy, deployment),
            partial(gateway.remove, name),
        )
    if before.annotations.get(DIGEST_ANNOTATION) == deployment.annotations[DIGEST_ANNOTATION]:
        return _Step(Change(name, "unchanged", url), _do_nothing)
    return _Step(
        Change(name, "updated", url),
        partial(gateway.deploy, deployment),
        partial(gateway.deploy, before),
    )


def _removal(state: GatewayState, name: str) -> _Step:
    gateway = state.gateway
    return _Step(
        Change(name, "removed", str(gateway.url)),
        partial(gateway.remove, name),
        partial(gateway.deploy, state.deployed[name]),
    )


async def _roll_back(steps: Sequence[_Step]) -> None:
    """Undo steps, the last one first. Errors are ignored: the caller reports the one that led here."""
    for step in reversed(steps):
        if step.undo is not None:
            with suppress(GatewayError):
                await step.undo()


async def _do_nothing() -> None:
    pass


def _obsolete(
    deployed: Mapping[str, FunctionDeployment], wanted: Mapping[str, FunctionDeployment]
) -> list[str]:
    """The names of this model's functions, by name and annotation, that are not in the partition."""
    models = {_model(name) for name in wanted}
    return [
        name
        for name, deployment in deployed.items()
        if name not in wanted and MODEL_ANNOTATION in deployment.annotations and _model(name) in models
    ]


def _model(function: str) -> str:
    matched = _NAME.fullmatch(function)
    return matched["model"] if matched else ""

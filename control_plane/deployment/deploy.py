"""Deploys a partition's functions to one or several gateways; what is there as it should be is left alone."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from control_plane.deployment.placement import Site, place
from control_plane.deployment.stack import MODEL_ANNOTATION, deployments
from control_plane.errors import GatewayError
from control_plane.faas.client import Gateway
from control_plane.faas.types import FunctionDeployment
from control_plane.gateway_access import GatewayAccess
from control_plane.partition.manifest import Manifest

DIGEST_ANNOTATION = "faasmoe.deployment"
"""Tells what a function was deployed as: providers add to the rest, and leave some of it out."""
ATTEMPTS = 3
PAUSE_SECONDS = 1.0
"""After the first attempt; twice as long after the second."""

_NAME = re.compile(r"(?P<model>.+)-l\d+(-\d+)?-[eg]\d+(-\d+)?")


@dataclass(frozen=True)
class Change:
    """What has been done about one function."""

    function: str
    done: str
    """created, updated, unchanged or removed."""
    gateway: str


@dataclass(frozen=True)
class _Step:
    """One thing to do, and how to take it back."""

    change: Change
    do: Callable[[], Awaitable[None]]
    undo: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True)
class Found:
    """A gateway, and what is on it."""

    gateway: Gateway
    deployed: Mapping[str, FunctionDeployment]
    max_functions: int | None

    @classmethod
    async def look(cls, gateway: Gateway) -> "Found":
        """Ask it. Raises `GatewayError`."""
        listed, allowed = await asyncio.gather(gateway.functions(), gateway.max_functions())
        return cls(gateway, {status.name: status.deployment for status in listed}, allowed)

    def site(self, leaving: Collection[str] = ()) -> Site:
        """What is to stay there, and the room."""
        return Site(str(self.gateway.url), frozenset(self.deployed).difference(leaving), self.max_functions)


async def deploy_all(
    manifest: Manifest,
    gateways: Sequence[Gateway],
    image_prefix: str = "",
    *,
    idle_exit: int | None = None,
    prune: bool = False,
    roll_back: bool = False,
) -> AsyncIterator[Change]:
    """Create or update each function on one of the gateways; yields what is done as it is done.

    With `prune`, functions of this model that are not in the partition any more, or not in their place, are
    removed. With `roll_back`, whatever was changed is changed back when something fails. Raises
    `GatewayError`, and `ConfigError` when there is no room, before anything is changed.
    """
    wanted = {each.service: each for each in map(_marked, _deployments(manifest, image_prefix, idle_exit))}
    found = await asyncio.gather(*map(Found.look, gateways))
    steps = list(_steps(manifest, wanted, found, prune))
    begun: list[_Step] = []
    for step in steps:
        # Also one that fails may have changed something.
        begun.append(step)
        try:
            await _insist(step.do)
        except GatewayError:
            if roll_back:
                await _take_back(begun)
            raise
        yield step.change


async def missing_functions(manifest: Manifest, gateways: Sequence[GatewayAccess]) -> list[str]:
    """The partition's functions that are on none of them.

    Raises `GatewayError` if the only one, or all of several, are away or refuse.
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


def deployment_of(manifest: Manifest, function: str, image_prefix: str = "") -> FunctionDeployment:
    """What one of the partition's functions is deployed as."""
    return next(_marked(each) for each in _deployments(manifest, image_prefix) if each.service == function)


def _steps(
    manifest: Manifest,
    wanted: Mapping[str, FunctionDeployment],
    found: Sequence[Found],
    prune: bool,
) -> Iterator[_Step]:
    obsolete = [_obsolete(each.deployed, wanted) if prune else [] for each in found]
    sites = [each.site(leaving) for each, leaving in zip(found, obsolete, strict=True)]
    sizes = {block.function: block.nbytes for block in manifest.blocks}
    places = place(sizes, sites)
    for each, old, new in zip(found, obsolete, places, strict=True):
        strays = [name for name in wanted if name in each.deployed and name not in new] if prune else []
        removals = [_removal(each, name) for name in (*old, *strays)]
        additions = [_addition(each, wanted[name]) for name in new]
        limit = each.max_functions
        tight = limit is not None and len(each.deployed.keys() | set(new)) > limit
        # What is removed last serves longest, unless its place is needed.
        yield from (*removals, *additions) if tight else (*additions, *removals)


def _addition(found: Found, deployment: FunctionDeployment) -> _Step:
    name, url = deployment.service, str(found.gateway.url)
    before = found.deployed.get(name)
    if before is None:
        return _Step(
            Change(name, "created", url),
            partial(found.gateway.deploy, deployment),
            partial(found.gateway.remove, name),
        )
    if before.annotations.get(DIGEST_ANNOTATION) == deployment.annotations[DIGEST_ANNOTATION]:
        return _Step(Change(name, "unchanged", url), _nothing)
    return _Step(
        Change(name, "updated", url),
        partial(found.gateway.deploy, deployment),
        partial(found.gateway.deploy, before),
    )


def _removal(found: Found, name: str) -> _Step:
    return _Step(
        Change(name, "removed", str(found.gateway.url)),
        partial(found.gateway.remove, name),
        partial(found.gateway.deploy, found.deployed[name]),
    )


async def _take_back(steps: Sequence[_Step]) -> None:
    """What cannot be taken back does not keep the rest from it: the first error is the one to tell."""
    for step in reversed(steps):
        if step.undo is not None:
            with suppress(GatewayError):
                await _insist(step.undo)


async def _nothing() -> None:
    pass


def _obsolete(
    deployed: Mapping[str, FunctionDeployment], wanted: Mapping[str, FunctionDeployment]
) -> list[str]:
    """Functions of the same model, by their names and as their annotation says, that are not wanted."""
    models = {_model(name) for name in wanted}
    return [
        name
        for name, deployment in deployed.items()
        if name not in wanted and MODEL_ANNOTATION in deployment.annotations and _model(name) in models
    ]


def _model(function: str) -> str:
    matched = _NAME.fullmatch(function)
    return matched["model"] if matched else ""


async def _insist(do: Callable[[], Awaitable[None]]) -> None:
    """Some gateways fail half-way, having removed what they were to replace; asked again, they mend it."""
    for attempt in range(ATTEMPTS):
        try:
            await do()
            return
        except GatewayError:
            if attempt == ATTEMPTS - 1:
                raise
            await asyncio.sleep(PAUSE_SECONDS * 2**attempt)


def _deployments(
    manifest: Manifest, image_prefix: str, idle_exit: int | None = None
) -> list[FunctionDeployment]:
    return [FunctionDeployment.from_json(body) for body in deployments(manifest, image_prefix, idle_exit)]


def _marked(deployment: FunctionDeployment) -> FunctionDeployment:
    """With the digest of all that it says; the image is named after the release and the weights."""
    said = json.dumps(deployment.to_json(), sort_keys=True)
    digest = hashlib.sha256(said.encode()).hexdigest()
    return replace(deployment, annotations={**deployment.annotations, DIGEST_ANNOTATION: digest})

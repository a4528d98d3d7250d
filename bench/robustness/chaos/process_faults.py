"""Faults of processes: functions, the gateway, the control plane.

Each is injected when its context begins, and ended when the context ends.
"""

import asyncio
import itertools
import os
import random
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psutil
from msgspec.structs import replace
from yarl import URL

from bench.robustness.stack import Part, Stack
from control_plane.errors import FaaSMoEError
from control_plane.faas.client import Gateway
from control_plane.faas.types import FunctionDeployment

STARVE_POLL_SECONDS = 0.01
REMOVAL_SECONDS = 30.0
"""How long a gateway may take to remove a function from its list, and then to end its process."""
ANNOTATION = "faasmoe.chaos"
_revisions = itertools.count(1)


@asynccontextmanager
async def kill_function(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Send SIGKILL to a function's process."""
    (await stack.function(numbers.choice(stack.functions))).kill()
    yield


@asynccontextmanager
async def pause_function(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Stop a function's process, and let it go on later."""
    process = await stack.function(numbers.choice(stack.functions))
    process.suspend()
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.resume()


@asynccontextmanager
async def hang_function(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Stop a function's process for good."""
    (await stack.function(numbers.choice(stack.functions))).suspend()
    yield


@asynccontextmanager
async def redeploy_function(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Update a function's deployment, so that its process is replaced."""
    name = numbers.choice(stack.functions)
    async with Gateway.connect(URL(stack.gateway.url), None) as gateway:
        deployment = await _deployment(gateway, name)
        changed = {**deployment.annotations, ANNOTATION: str(next(_revisions))}
        await gateway.deploy(replace(deployment, annotations=changed))
        yield


@asynccontextmanager
async def remove_function(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Remove a function whose process is stopped, so that its connections are not reset; deploy it again."""
    name = numbers.choice(stack.functions)
    async with Gateway.connect(URL(stack.gateway.url), None) as gateway:
        deployment = await _deployment(gateway, name)
        (await stack.function(name)).suspend()
        removal = asyncio.create_task(gateway.remove(name))
        try:
            async with asyncio.timeout(REMOVAL_SECONDS):
                while name in {status.name for status in await gateway.functions()}:
                    await asyncio.sleep(0.05)
            await gateway.deploy(deployment)
            yield
            await asyncio.wait([removal], timeout=REMOVAL_SECONDS)
        finally:
            removal.cancel()
            await asyncio.gather(removal, return_exceptions=True)


@asynccontextmanager
async def starve_function(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Kill a function's process as the kernel does when memory is short, and let none after it get memory."""
    name = numbers.choice(stack.functions)

    async def starve() -> None:
        while True:
            for process in stack.function_processes(name):
                with suppress(ProcessLookupError):
                    _, hard = resource.prlimit(process.pid, resource.RLIMIT_AS)
                    resource.prlimit(process.pid, resource.RLIMIT_AS, (1, hard))
            await asyncio.sleep(STARVE_POLL_SECONDS)

    (await stack.function(name)).kill()
    starving = asyncio.create_task(starve())
    try:
        yield
    finally:
        starving.cancel()
        await asyncio.gather(starving, return_exceptions=True)
    for process in stack.function_processes(name):
        process.kill()


@asynccontextmanager
async def kill_gateway(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Kill the gateway, and start it again on its port."""
    await _replace(stack.gateway)
    yield


@asynccontextmanager
async def hang_gateway(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Stop the gateway, and let it go on later."""
    os.kill(stack.gateway.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(stack.gateway.pid, signal.SIGCONT)


@asynccontextmanager
async def kill_control_plane(stack: Stack, numbers: random.Random) -> AsyncIterator[None]:
    """Kill the control plane, and start it again on its port."""
    await _replace(stack.control_plane)
    yield


async def _deployment(gateway: Gateway, name: str) -> FunctionDeployment:
    for status in await gateway.functions():
        if status.name == name:
            return status.deployment
    raise FaaSMoEError(f"the gateway does not list {name}")


async def _replace(part: Part) -> None:
    await part.kill()
    await part.start()

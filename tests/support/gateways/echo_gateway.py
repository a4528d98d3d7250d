"""An embedded gateway with echo functions, in the test's process or, by `python -m`, in another one."""

import asyncio
import functools
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ParamSpec

import aiohttp
import psutil
from aiohttp import web

from control_plane.errors import PartitionError
from control_plane.faas.gateway_access import Credentials
from control_plane.gateway.app import MAX_BODY_BYTES, create_app
from control_plane.gateway.provider.emulation import OWN, EmulatedBehaviour
from control_plane.gateway.provider.forking.fork_servers import ForkServers
from control_plane.gateway.provider.image import LocalImage
from control_plane.gateway.provider.process import Timeouts
from control_plane.gateway.provider.provider import LocalProvider
from control_plane.gateway.provider.secret_store import SecretStore
from tests.support.gateways.echo_client import IMAGE, EchoClient

P = ParamSpec("P")

TIMEOUTS = Timeouts(start=20, call=20, stop=10)

SETTINGS = (
    *("FAASMOE_FUNCTION", "FAASMOE_PARTITION", "COLOUR"),
    *("ECHO_CRASH", "ECHO_READY_FILE", "ECHO_BANNER", "ECHO_STUBBORN"),
)
_ECHO_FUNCTION = Path(__file__).with_name("echo_function.py")
FORK_SERVER = (sys.executable, "-m", "functions.host.fork_server", "tests.support.gateways.echo_function")


def asynchronous(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run an async test in a new event loop. The test fails if it leaves a process behind."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def main() -> None:
            await test(*args, **kwargs)

        before = psutil.Process().children()
        asyncio.run(main())
        assert psutil.Process().children() == before

    return run


@asynccontextmanager
async def echo_gateway(
    folder: Path,
    credentials: Credentials | None = None,
    timeouts: Timeouts = TIMEOUTS,
    idle_after: float = 900,
    max_body_bytes: int = MAX_BODY_BYTES,
    behaviour: EmulatedBehaviour = OWN,
    host: str = "127.0.0.1",
    fork_server: Sequence[str] = FORK_SERVER,
) -> AsyncIterator[EchoClient]:
    """Run a gateway on a free port, with its secrets in `folder`; yields a client.

    It listens on loopback, also if it is told that its `host` is another one. Without a command that runs a
    `fork_server`, functions are started as programs.
    """
    provider = _echo_provider(folder, timeouts, idle_after, behaviour, fork_server)
    runner = web.AppRunner(create_app(provider, credentials, max_body_bytes, host), handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        _, port = runner.addresses[0]
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            yield EchoClient(session, provider)
    finally:
        await runner.cleanup()


async def wait_for_end(pid: int) -> None:
    """Wait until a process has exited, without reaping it."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(pidfd, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), 20)
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _echo_provider(
    folder: Path,
    timeouts: Timeouts = TIMEOUTS,
    idle_after: float = 900,
    behaviour: EmulatedBehaviour = OWN,
    fork_server: Sequence[str] = FORK_SERVER,
) -> LocalProvider:
    image = LocalImage(
        name=IMAGE,
        command=(sys.executable, "-S", str(_ECHO_FUNCTION)),
        environment={"FAASMOE_PARTITION": "the provider's"},
        settings=SETTINGS,
        functions=("block-0", "damaged"),
        verify=_verify,
    )
    servers = ForkServers(fork_server) if fork_server else None
    secrets = SecretStore(folder / "secrets")
    return LocalProvider(image, secrets, idle_after, timeouts, behaviour, fork_servers=servers)


def _verify(function: str) -> None:
    if function == "damaged":
        raise PartitionError("blocks/damaged.safetensors: wrong checksum")


def main() -> None:
    """Print the address and serve until a signal arrives, with secrets in the folder of the argument."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    provider = _echo_provider(Path(sys.argv[1]))
    web.run_app(create_app(provider, credentials=None), sock=listener, print=None)


if __name__ == "__main__":
    main()

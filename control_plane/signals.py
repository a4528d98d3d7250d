"""What SIGINT and SIGTERM do to a command."""

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import Any

import click


def serve_until_signal(what: str, server: AbstractAsyncContextManager[Any]) -> None:
    """Run a server, whose context yields its address, until SIGINT or SIGTERM, be it up by then or not."""

    async def run() -> None:
        async with server as url:
            click.echo(f"{what} on {url}; Ctrl-C stops it")
            await asyncio.Event().wait()

    async def run_until_signal() -> None:
        task = asyncio.create_task(run())
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(run_until_signal())


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """SIGTERM as an exception, so that what was half written is removed."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

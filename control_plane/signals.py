"""Ends commands in an orderly way on SIGINT and SIGTERM."""

import asyncio
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import Any

import click


def serve_until_signal(what: str, server: AbstractAsyncContextManager[Any]) -> None:
    """Run a server, whose context yields its address, until SIGINT or SIGTERM.

    A signal also ends a server that is still starting. `what` names it in the line that is printed.
    """

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
    """Turn SIGTERM into SystemExit within the block, so that half-written files are removed."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

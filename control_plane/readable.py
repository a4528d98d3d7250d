"""Waits for files that asyncio has no streams for."""

import asyncio


async def until_readable(file: int) -> None:
    """Wait until a file can be read: a socket with bytes, or the pidfd of a process that has ended."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(file, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(file)

"""Measures the overhead of calling functions: `make bench-invoke`.

A step of the engine calls all functions of a layer at once, and continues when the last one has answered. One
round here does the same, with almost nothing to compute, in five ways:

- echo: as a baseline, an aiohttp client calls bare aiohttp servers, which return the body.
- transport: calls of functions with an unknown path, so that bodies are sent but not decoded.
- direct: calls of functions at their own addresses, in C at both ends.
- python: the same calls with a prefetch of what is in memory, which C leaves to Python at both ends.
- gateway: calls through the embedded gateway.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import aiohttp
import click
import numpy as np
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar
from yarl import URL

from bench.support import processes
from control_plane.faas.connection import Address, Connection, ready
from control_plane.faas.gateway_access import default_secret_file, make_function_secret
from control_plane.faas.invoking.invoker import Invoker
from control_plane.formatting import table
from control_plane.partition.granularity import Granularity
from control_plane.partition.manifest import Manifest
from control_plane.partition.partitioner import partition
from functions.contract.messages import Invocation

HIDDEN_SIZE = 2048
SIZES = {"4 KB": 1, "256 KB": 64}
"""Number of bf16 rows in a body, by the body's size."""
AT_ONCE = (1, 4, 16)
TURN = 25
"""Rounds of one way before the next way's turn."""
MAX_ANSWER_BYTES = 1 << 20
ANSWER_SECONDS = 10.0
WAYS = ("echo", "transport", "direct", "python", "gateway")

Round = Callable[[], Awaitable[None]]


@click.command()
@click.option(
    "--rounds", type=click.IntRange(TURN), default=400, show_default=True, help="Rounds of each way."
)
def main(rounds: int) -> None:
    """Print the latency of concurrent calls, in milliseconds."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory(prefix="faasmoe-bench-") as folder:
        asyncio.run(bench(Path(folder), rounds))


async def bench(folder: Path, rounds: int) -> None:
    """Start all servers, measure the ways in turn, and print a table."""
    manifest = _partition(folder)
    rows = []
    async with AsyncExitStack() as stack:
        _, gateway = await stack.enter_async_context(processes.gateway(folder / "partition"))
        echoes = [
            (await stack.enter_async_context(processes.running(module="bench.support.echo_server")))[1]
            for _ in range(max(AT_ONCE))
        ]
        client = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        )
        url = URL(gateway)
        address = Address(url.host or "", url.port or 80)
        # Behind a gateway that is not on loopback, no function on loopback is called directly.
        anywhere = Address("0.0.0.0", address.port)
        secret = make_function_secret(default_secret_file())
        direct = Invoker(lambda _: address, lambda _: True, secret=secret)
        proxied = Invoker(lambda _: anywhere, lambda _: True, secret=secret)
        stack.callback(direct.close)
        stack.callback(proxied.close)
        for size, count in SIZES.items():
            for at_once in AT_ONCE:
                calls = {
                    block.function: _invocation(manifest, block.function, count)
                    for block in manifest.blocks[:at_once]
                }
                body = b"".join(next(iter(calls.values())).encode())
                # After a first call through the gateway, the invoker knows the functions' own addresses.
                direct.begin(calls).wait()
                ways: dict[str, Round] = {
                    "echo": _echo(client, echoes[:at_once], body),
                    "transport": _transport(stack, direct, list(calls), body),
                    "direct": _invoke(direct, calls),
                    "python": _invoke(direct, {name: _predicting(call) for name, call in calls.items()}),
                    "gateway": _invoke(proxied, calls),
                }
                rows.append([size, str(at_once), *_cells(await _measure(ways, rounds))])
    columns = [name for way in WAYS for name in (f"{way}: p50", "p99")]
    for line in table(["body", "at once", *columns, "direct / echo, p50"], rows):
        click.echo(line)


async def _measure(ways: Mapping[str, Round], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round of each way. The ways take turns, so that other load slows all of them alike."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for run in ways.values():
        # The first round opens the connections.
        await run()
    for _ in range(0, rounds, TURN):
        for way, run in ways.items():
            for _ in range(TURN):
                began = time.perf_counter()
                await run()
                seconds[way].append(time.perf_counter() - began)
    return seconds


def _invoke(invoker: Invoker, calls: Mapping[str, Invocation]) -> Round:
    async def run() -> None:
        # This blocks the event loop, in which nothing else runs.
        invoker.begin(calls).wait()

    return run


def _transport(stack: AsyncExitStack, invoker: Invoker, functions: Sequence[str], body: bytes) -> Round:
    """Calls that a function reads in full and refuses, without decoding, computing or encoding."""
    addresses = [address for name in functions if (address := invoker.address_of(name))]
    connections = [Connection(address, senses_loss=True) for address in addresses]
    for connection in connections:
        stack.callback(connection.close)

    async def run() -> None:
        for connection in connections:
            connection.send("/nowhere", "application/octet-stream", [body], MAX_ANSWER_BYTES)
        for connection in connections:
            while connection.sending or connection.read() is None:
                ready([connection], ANSWER_SECONDS)
                connection.push()

    return run


def _echo(client: aiohttp.ClientSession, urls: Sequence[str], body: bytes) -> Round:
    async def ask(url: str) -> None:
        async with client.post(url, data=body) as answer:
            await answer.read()

    async def run() -> None:
        await asyncio.gather(*map(ask, urls))

    return run


def _cells(seconds: Mapping[str, Sequence[float]]) -> list[str]:
    """Percentiles of each way in milliseconds, and the ratio of direct calls to echo."""
    percentiles = {way: np.percentile(values, (50, 99)) * 1000 for way, values in seconds.items()}
    cells = [f"{value:.2f}" for pair in percentiles.values() for value in pair]
    return [*cells, f"{percentiles['direct'][0] / percentiles['echo'][0]:.2f}"]


def _partition(folder: Path) -> Manifest:
    """Write a partition of one layer of tiny experts, with one expert in each function."""
    count = max(AT_ONCE)
    config = AutoConfig.for_model(
        "qwen2_moe",
        hidden_size=HIDDEN_SIZE,
        intermediate_size=64,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=16,
        num_key_value_heads=16,
        num_experts=count,
        num_experts_per_tok=1,
        vocab_size=64,
        dtype="bfloat16",
    )
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder / "model")
    return partition(folder / "model", folder / "partition", granularity=Granularity(1, 1))


def _invocation(manifest: Manifest, function: str, rows: int) -> Invocation:
    """A call in which only the first row uses the function's expert."""
    (layer, (expert,)) = next(iter(manifest.block(function).experts.items()))
    index = np.full((rows, 1), -1, np.int16)
    index[0] = expert
    return Invocation(
        layer=layer,
        model=manifest.fingerprint,
        hidden_states=np.zeros((rows, HIDDEN_SIZE), np.uint16),
        expert_index=index,
        expert_weight=np.ones((rows, 1), np.float32),
    )


def _predicting(invocation: Invocation) -> Invocation:
    """The call, with a prefetch of its own expert."""
    return replace(invocation, prefetch={invocation.layer: [int(invocation.expert_index.max())]})


if __name__ == "__main__":
    main()

"""Streams with known answers while parts are killed, stopped, starved and damaged: `make chaos`."""

import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click

from bench.comparison.greedy import GreedyAnswer
from bench.robustness.chaos.answers import known_answers
from bench.robustness.chaos.faults import FAULTS, Fault
from bench.robustness.chaos.injector import Injector
from bench.robustness.chaos.results import Account, ChaosResult, examples
from bench.robustness.chaos.streams import Attempt, Ending, Flow, Streams, connected
from bench.robustness.stack import ended_by_sigterm, settled, stack
from control_plane.errors import FaaSMoEError
from control_plane.partition.partitioner import partition

MODEL = Path(__file__).parents[3] / "models" / "demo"
NAMES = [f"tenant-{number}" for number in range(1, 9)]
STREAMS = 32
PROMPTS = 24
MAX_TOKENS = 48


async def chaos(
    model: Path,
    faults: Sequence[Fault],
    seconds: float,
    seed: int,
    streams: int = STREAMS,
    log: Callable[[str], None] = lambda _: None,
) -> ChaosResult:
    """Serve a checkpoint to streams with known answers while faults are injected. Raises `FaaSMoEError`.

    Each fault is injected at least once, and again until `seconds` are over.
    """
    began = time.perf_counter()
    known = await asyncio.to_thread(known_answers, model, PROMPTS, MAX_TOKENS, seed)
    with tempfile.TemporaryDirectory(prefix="faasmoe-chaos-") as temporary:
        folder = Path(temporary)
        # In float32 answers do not depend on rounding, and so not on which requests share a batch.
        await asyncio.to_thread(partial(partition, model, folder / "partition", dtype="f32"))
        async with (
            ended_by_sigterm(),
            stack(folder, folder / "partition", NAMES, {}) as served,
            connected(served.control_plane, served.keys, known) as clients,
        ):
            clients.attempts += await _check(clients, known)
            injector = Injector(served, clients, random.Random(seed), log)
            async with clients.running(streams, seed):
                await injector.run(faults, seconds)
            injector.finish()
            # Notes the ports of the processes that run now.
            await asyncio.to_thread(served.processes)
            await served.stop()
            processes_left = await settled(lambda: len(served.processes()))
            connections_left = await settled(served.connections)
            usage = await served.usage()
    return ChaosResult(
        seconds=time.perf_counter() - began,
        seed=seed,
        faults=list(injector.results.values()),
        accounts=[Account.of(name, clients.attempts, usage.get(name, {}), MAX_TOKENS) for name in NAMES],
        processes_left=processes_left,
        connections_left=connections_left,
        examples=examples(clients.attempts),
    )


async def _check(clients: Streams, known: Sequence[GreedyAnswer]) -> list[Attempt]:
    """Ask for each known answer once, without a fault. Raises `FaaSMoEError` if one is wrong."""
    attempts = [await clients.ask(NAMES[0], answer, Flow()) for answer in known]
    for attempt in attempts:
        if attempt.wrong or attempt.ending is not Ending.COMPLETED:
            wrong = f"{attempt.wrong} of {attempt.tokens} tokens are wrong {attempt.problem}"
            raise FaaSMoEError(f"without any fault, {wrong}")
    return attempts


class _Faults(click.ParamType[list[Fault]]):
    """Names of faults with commas between them."""

    name = "LIST"

    def convert(
        self, value: str | list[Fault], param: click.Parameter | None, ctx: click.Context | None
    ) -> list[Fault]:
        if isinstance(value, list):
            return value
        try:
            return [FAULTS[name] for name in value.split(",")]
        except KeyError as error:
            self.fail(f"no fault {error}; there are {', '.join(FAULTS)}", param, ctx)


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path), default=MODEL)
@click.option(
    "--seconds",
    type=click.FloatRange(0),
    default=600.0,
    show_default=True,
    help="How long faults are injected. Each is injected once, even if that takes longer.",
)
@click.option(
    "--faults", type=_Faults(), default=list(FAULTS.values()), help="Names, with commas.  [default: all]"
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Determines prompts and order of faults."
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file for the counts.")
def main(model: Path, seconds: float, faults: list[Fault], seed: int, output: Path | None) -> None:
    """Serve the checkpoint MODEL while faults are injected, and print what its clients noticed.

    The exit status is 1 if a count that must be zero is not.
    """
    try:
        result = asyncio.run(chaos(model, faults, seconds, seed, log=partial(click.echo, err=True)))
    except FaaSMoEError as error:
        raise click.ClickException(str(error)) from error
    for line in result.lines():
        click.echo(line)
    if output is not None:
        output.write_text(json.dumps(result.to_json(), indent=1) + "\n")
    if not result.held:
        sys.exit(1)


if __name__ == "__main__":
    main()

"""Runs inputs of one target in this process: `python -m bench.robustness.fuzz.worker`."""

import faulthandler
import time
from pathlib import Path

import click

from bench.robustness.fuzz.progress import Progress
from bench.robustness.fuzz.share import Share, run_share
from bench.robustness.fuzz.targets import TARGETS


@click.command(help=__doc__)
@click.argument("name", type=click.Choice(list(TARGETS)))
@click.option("--model", type=click.Path(path_type=Path), required=True)
@click.option("--progress", type=click.Path(path_type=Path), required=True)
@click.option("--findings", type=click.Path(path_type=Path), required=True)
@click.option("--seed", type=int, required=True)
@click.option("--first", type=int, required=True)
@click.option("--stop", type=int, required=True)
@click.option("--seconds", type=float, required=True)
def main(
    name: str, model: Path, progress: Path, findings: Path, seed: int, first: int, stop: int, seconds: float
) -> None:
    # What it prints at a crash goes to the supervisor.
    faulthandler.enable()
    share = Share(seed, first, stop, time.monotonic() + seconds)
    with Progress(progress) as told, TARGETS[name].open(model) as target:
        run_share(target, name, share, told, findings)


if __name__ == "__main__":
    main()

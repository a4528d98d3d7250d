"""Gives many malformed inputs to everything that reads data from outside: `make fuzz`.

\b
  make fuzz
  make fuzz ARGS="--seconds 60 --seed 3 --target invocations --target api"

Each target runs in a process of its own, with the C extensions checked by GCC's sanitizers. A finding is a
crash, an exception that is not one of the target's own errors, a status of 500 or more, an input that takes
too long, or memory that grows. docs/robustness.md says more.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
from transformers.utils.logging import disable_progress_bar

from bench.robustness.fuzz import sanitized
from bench.robustness.fuzz.supervisor import Order, Outcome, supervise
from bench.robustness.fuzz.support import model
from bench.robustness.fuzz.targets import TARGETS
from control_plane.errors import FaaSMoEError
from control_plane.formatting import table

ROOT = Path(__file__).parents[3]
FINDINGS = ROOT / "build" / "fuzz"
DAY = 86400.0


@click.command(help=__doc__)
@click.option(
    "--target", "names", multiple=True, type=click.Choice(list(TARGETS)), help="Only these.  [default: all]"
)
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed makes other inputs.")
@click.option(
    "--inputs",
    type=click.IntRange(1),
    help="Inputs of each target.  [default: 100,000 for three of them, 10,000 for the others]",
)
@click.option(
    "--seconds", type=float, default=DAY, help="The most time for each target.  [default: no limit]"
)
@click.option(
    "--findings",
    type=click.Path(path_type=Path),
    default=FINDINGS,
    help="Folder for findings.  [default: build/fuzz]",
)
def main(names: Sequence[str], seed: int, inputs: int | None, seconds: float, findings: Path) -> None:
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        library = sanitized.build(ROOT)
        environment = sanitized.environment()
    except FaaSMoEError as error:
        raise click.ClickException(str(error)) from error
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="faasmoe-fuzz-") as folder:
        model.write(Path(folder))
        for name in names or TARGETS:
            order = Order(name, seed, inputs or TARGETS[name].inputs, seconds, findings.absolute())
            command = [sys.executable, "-m", "bench.robustness.fuzz.worker", name, f"--model={folder}"]
            outcomes.append(supervise(order, command, environment, library))
            # Line by line, since all of them take many minutes.
            click.echo(f"{name}: {outcomes[-1].inputs} inputs, {outcomes[-1].findings} findings", err=True)
    for line in rows(outcomes):
        click.echo(line)
    if any(outcome.findings for outcome in outcomes):
        raise click.ClickException(f"there are findings, see {findings}")


def rows(outcomes: Sequence[Outcome]) -> Sequence[str]:
    """The table of all targets, as lines."""
    header = ["target", "inputs", "accepted", "refused", "findings", "seconds", "memory growth, MB"]
    cells = [
        [
            outcome.name,
            f"{outcome.inputs:,}",
            f"{outcome.accepted:,}",
            f"{outcome.refused:,}",
            str(outcome.findings),
            f"{outcome.seconds:.0f}",
            f"{outcome.growth / 1e6:.1f}",
        ]
        for outcome in outcomes
    ]
    return list(table(header, cells))


if __name__ == "__main__":
    main()

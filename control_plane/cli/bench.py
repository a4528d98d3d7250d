"""`faasmoe bench`: compare ways to serve several tenants under one workload."""

import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from control_plane.cli.options import (
    BYTES,
    COUNT,
    FILE,
    FOLDER,
    OUTPUT_FILE,
    SECONDS,
    Listed,
    option_group,
    other_option,
)
from control_plane.errors import ConfigError
from control_plane.signals import sigterm_exits

RESULTS = Path("build") / "bench"
_ABOVE_ZERO = click.FloatRange(0, min_open=True)


def _count(text: str) -> int:
    """Parse a whole number above zero. Raises ValueError."""
    if not text.isascii() or not text.isdigit() or not int(text):
        raise ValueError(f"{text!r} is not a number above zero")
    return int(text)


_workload_options = option_group(
    click.option("--tenants", type=COUNT, default=6, show_default=True, help="Number of tenants."),
    click.option(
        "--tasks",
        type=FOLDER,
        help="Folder with BIG-Bench-Hard's tasks, as prompts for bbh.  [default: random tokens]",
    ),
    click.option("--rounds", type=COUNT, default=3, show_default=True, help="Number of rounds, for bbh."),
    click.option(
        "--output-tokens", type=COUNT, default=24, show_default=True, help="Tokens of each answer, for bbh."
    ),
    click.option(
        "--duration",
        type=SECONDS,
        default="120s",
        show_default=True,
        help="Length of the workload, for all kinds but bbh.",
    ),
    click.option(
        "--rate",
        type=_ABOVE_ZERO,
        default=0.5,
        show_default=True,
        help="Average requests per second of all tenants together, for poisson and bursty.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random numbers."),
)


@click.group()
def bench() -> None:
    """Compare ways to serve several tenants.

    Some serve full models, others serve with FaaSMoE.

    \b
      faasmoe bench run                                     # six tenants, five strategies
      faasmoe bench run --workload bursty --duration 5m
      faasmoe bench workload azure --trace FILE.csv -o w.jsonl
      faasmoe bench run --workload w.jsonl --strategies shared-model,faasmoe-shared
      faasmoe bench report RESULTS_DIR
    """


@bench.command()
@click.option(
    "--strategies",
    type=Listed(str),
    default="all",
    show_default=True,
    help="Strategies to measure, with commas between them: baseline, shared-model, local, faasmoe-shared, "
    "faasmoe-private, llama-cpp.",
)
@click.option(
    "--shape",
    default="qwen1.5-moe-mini",
    show_default=True,
    help="Name of the dimensions of a model with random weights, from bench/support/shapes.py.",
)
@click.option("--model", type=FOLDER, help="Checkpoint to serve instead of random weights.")
@click.option(
    "--workload",
    default="bbh",
    show_default=True,
    help="Workload: bbh (rounds, as in the paper), poisson, bursty, or a file that `faasmoe bench workload` "
    "wrote.",
)
@_workload_options
@click.option(
    "--experts-per-function",
    type=Listed(_count),
    default="",
    help="Sizes of functions, such as 6,10,20,30, with which FaaSMoE-Shared is measured in addition.",
)
@click.option(
    "--threads", type=COUNT, default=None, help="Threads of each process that computes.  [default: all cores]"
)
@click.option(
    "--idle-timeout",
    type=SECONDS,
    default="10s",
    show_default=True,
    help="Time without a call before a function of FaaSMoE is scaled to zero.",
)
@click.option(
    "--memory-budget",
    type=BYTES,
    metavar="BYTES",
    help="Memory budget, such as 6GB, with which FaaSMoE-Shared is measured in addition.",
)
@click.option(
    "--dtypes",
    type=Listed(str),
    default="",
    help="Types of weights, such as int4, with which FaaSMoE-Shared is measured in addition.",
)
@click.option(
    "--llama-server",
    type=click.Path(exists=True, dir_okay=False),
    help="llama.cpp's server program, for the strategy llama-cpp.  [default: the one on the PATH, if any]",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the results.  [default: build/bench/TIME]",
)
@click.option("--resume", type=FOLDER, help="Results folder of a run to continue, with its own options.")
@click.pass_context
def run(ctx: click.Context, /, output: Path | None, resume: Path | None, **options: Any) -> None:
    """Measure strategies under the same workload, and write a report.

    The strategies run one after the other. Each runs as real processes and gets its requests over HTTP.
    After Ctrl-C, --resume continues.
    """
    from bench.comparison.progress import Progress
    from bench.comparison.report.report import write_report
    from bench.comparison.run import begin
    from bench.comparison.run import resume as continue_run
    from bench.comparison.settings import RunSettings

    if resume and (other := other_option(ctx, "resume")):
        raise click.UsageError(f"--resume continues a run with its own options: it takes no {other}")
    folder = resume or output or RESULTS / datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    try:
        with Progress() as progress, sigterm_exits():
            if resume:
                continue_run(resume, progress)
            else:
                options["threads"] = options["threads"] or len(os.sched_getaffinity(0))
                options["model"] = str(options["model"]) if options["model"] else None
                options["tasks"] = str(options["tasks"]) if options["tasks"] else None
                options["llama_server"] = options["llama_server"] or _installed("llama-server")
                begin(RunSettings(**options), folder, progress)
    except KeyboardInterrupt:
        click.echo(f"stopped; continue with `faasmoe bench run --resume {folder}`", err=True)
        ctx.exit(130)
    for file in write_report(folder):
        click.echo(file)


@bench.command()
@click.argument("kind", type=click.Choice(["azure", "burstgpt", "bbh", "poisson", "bursty"]))
@click.option(
    "--trace",
    type=FILE,
    help="CSV file of the trace, for azure and burstgpt.",
)
@click.option(
    "--scale",
    type=_ABOVE_ZERO,
    default=1.0,
    show_default=True,
    help="Factor for a trace's numbers of tokens.",
)
@click.option(
    "--speed",
    type=_ABOVE_ZERO,
    default=1.0,
    show_default=True,
    help="Seconds of a trace that become one second of the workload.",
)
@_workload_options
@click.option(
    "--output",
    "-o",
    type=OUTPUT_FILE,
    default="workload.jsonl",
    show_default=True,
    help="File to write.",
)
def workload(
    kind: str, trace: Path | None, tenants: int, scale: float, speed: float, output: Path, **options: Any
) -> None:
    """Write a workload as a file of JSON lines.

    Each line has a request's time, tenant, prompt and numbers of tokens.

    azure and burstgpt are public traces. Their requests are assigned to tenants at random, in unequal shares.

    \b
      faasmoe bench workload azure --trace FILE.csv --duration 5m -o azure.jsonl
      faasmoe bench workload poisson --tenants 10 --rate 2
    """
    from bench.comparison.workload import generators as workloads
    from bench.comparison.workload import workload as files
    from bench.comparison.workload.traces import TRACES, Conversion

    names = workloads.tenants(tenants)
    if kind in TRACES:
        if trace is None:
            raise click.UsageError(f"{kind} needs --trace")
        conversion = Conversion(names, options["seed"], scale, speed, options["duration"])
        requests = conversion.requests(trace, TRACES[kind])
    else:
        requests = workloads.make(kind, names, **options)
    try:
        files.write(output, requests)
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from error
    click.echo(
        f"{output}: {len(requests)} requests of {len({request.tenant for request in requests})} tenants"
    )


@bench.command()
@click.argument("results", type=FOLDER)
def report(results: Path) -> None:
    """Write the report from the JSON files in the RESULTS folder.

    It consists of report.html, report.md and plots.
    """
    from bench.comparison.report.report import write_report

    for file in write_report(results):
        click.echo(file)


def _installed(program: str) -> str | None:
    """The program's name, if it is on the PATH."""
    return program if shutil.which(program) else None

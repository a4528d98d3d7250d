"""`faasmoe bench`: ways to serve several tenants, compared under one workload."""

import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from control_plane.cli.options import BYTES, COUNT, SECONDS, Command, Listed
from control_plane.errors import ConfigError
from control_plane.signals import sigterm_exits

RESULTS = Path("build") / "bench"
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_ABOVE_ZERO = click.FloatRange(0, min_open=True)


def _count(text: str) -> int:
    """Raises ValueError."""
    if not text.isascii() or not text.isdigit() or not int(text):
        raise ValueError(f"{text!r} is not a number above zero")
    return int(text)


def _workload_options(command: Command) -> Command:
    """What a workload that is made by its name is made of."""
    options = [
        click.option("--tenants", type=COUNT, default=6, show_default=True),
        click.option(
            "--tasks",
            type=_FOLDER,
            help="Folder with BIG-Bench-Hard's tasks, for bbh.  [default: random tokens]",
        ),
        click.option("--rounds", type=COUNT, default=3, show_default=True, help="Of bbh."),
        click.option(
            "--output-tokens", type=COUNT, default=24, show_default=True, help="Of an answer, for bbh."
        ),
        click.option("--duration", type=SECONDS, default="120s", show_default=True, help="Of all but bbh."),
        click.option(
            "--rate",
            type=_ABOVE_ZERO,
            default=0.5,
            show_default=True,
            help="Requests a second of all tenants, on average, of poisson and bursty.",
        ),
        click.option("--seed", type=int, default=0, show_default=True),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def bench() -> None:
    """Compare ways to serve several tenants: full models, and FaaSMoE's.

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
    help="baseline, shared-model, local, faasmoe-shared, faasmoe-private, llama-cpp, with commas between.",
)
@click.option(
    "--shape",
    default="qwen1.5-moe-mini",
    show_default=True,
    help="Dimensions of a model of random weights, as bench/support/checkpoint.py has them.",
)
@click.option("--model", type=_FOLDER, help="A checkpoint to serve in its place.")
@click.option(
    "--workload",
    default="bbh",
    show_default=True,
    help="bbh (rounds, as in the paper), poisson, bursty, or a file of `faasmoe bench workload`.",
)
@_workload_options
@click.option(
    "--experts-per-function",
    type=Listed(_count),
    default="",
    help="Measure FaaSMoE-Shared with functions of these sizes, too: 6,10,20,30.",
)
@click.option(
    "--threads", type=COUNT, default=None, help="Of each process that computes.  [default: all cores]"
)
@click.option(
    "--idle-timeout", type=SECONDS, default="10s", show_default=True, help="Of FaaSMoE's functions."
)
@click.option("--memory-budget", type=BYTES, help="Measure FaaSMoE-Shared within so much, too.")
@click.option(
    "--llama-server",
    type=click.Path(exists=True, dir_okay=False),
    help="llama.cpp's program, for the strategy llama-cpp.  [default: the one on the PATH, if any]",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder.  [default: build/bench/TIME]",
)
@click.option("--resume", type=_FOLDER, help="Go on with the results of this folder, as they were begun.")
@click.pass_context
def run(ctx: click.Context, output: Path | None, resume: Path | None, **options: Any) -> None:
    """Measure strategies one after the other, over the same workload, and write a report.

    Each is started as real processes and asked over its HTTP API. Ctrl-C keeps what is measured.
    """
    from bench.comparison.progress import Progress
    from bench.comparison.report.report import write_report
    from bench.comparison.run import begin
    from bench.comparison.run import resume as go_on
    from bench.comparison.settings import RunSettings

    if resume:
        _refuse_others(ctx)
    folder = resume or output or RESULTS / datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    try:
        with Progress() as progress, sigterm_exits():
            if resume:
                go_on(resume, progress)
            else:
                options["threads"] = options["threads"] or len(os.sched_getaffinity(0))
                options["model"] = str(options["model"]) if options["model"] else None
                options["tasks"] = str(options["tasks"]) if options["tasks"] else None
                options["llama_server"] = options["llama_server"] or _installed("llama-server")
                begin(RunSettings(**options), folder, progress)
    except KeyboardInterrupt:
        click.echo(f"stopped; `faasmoe bench run --resume {folder}` goes on", err=True)
        ctx.exit(130)
    for file in write_report(folder):
        click.echo(file)


@bench.command()
@click.argument("kind", type=click.Choice(["azure", "burstgpt", "bbh", "poisson", "bursty"]))
@click.option(
    "--trace",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV file, of azure and burstgpt.",
)
@click.option(
    "--scale",
    type=_ABOVE_ZERO,
    default=1.0,
    show_default=True,
    help="Factor of a trace's numbers of tokens.",
)
@click.option(
    "--speed",
    type=_ABOVE_ZERO,
    default=1.0,
    show_default=True,
    help="So many seconds of a trace become one.",
)
@_workload_options
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    default="workload.jsonl",
    show_default=True,
)
def workload(
    kind: str, trace: Path | None, tenants: int, scale: float, speed: float, output: Path, **options: Any
) -> None:
    """Write a workload: who asks for what, and when, as JSON lines.

    azure and burstgpt are public traces; their requests are given to tenants at random, unequally.
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
@click.argument("results", type=_FOLDER)
def report(results: Path) -> None:
    """Write report.html, report.md and plots anew, from the JSON in the RESULTS folder alone."""
    from bench.comparison.report.report import write_report

    for file in write_report(results):
        click.echo(file)


def _installed(program: str) -> str | None:
    """Its name, if it is on the PATH."""
    return program if shutil.which(program) else None


def _refuse_others(ctx: click.Context) -> None:
    """Raises UsageError: a run that goes on has the options that it was begun with."""
    given = click.core.ParameterSource.COMMANDLINE
    others = [name for name in ctx.params if ctx.get_parameter_source(name) == given and name != "resume"]
    if others:
        option = others[0].replace("_", "-")
        raise click.UsageError(f"--resume goes on as the run was begun: it takes no --{option}")

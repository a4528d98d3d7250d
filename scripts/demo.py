"""The demo: serves the bundled model with expert functions, to three tenants at once (`make demo`).

It runs the same commands as a user would, `faasmoe gateway`, `deploy`, `tenants add` and `serve`, each in its
own process, and stops them at the end.
"""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import psutil
from yarl import URL

from bench.support.processes import output, running
from control_plane.cli.api_client import Client, PromptAnswer, Question
from control_plane.errors import FaaSMoEError
from control_plane.formatting import format_bytes, table
from control_plane.partition.partitioner import partition

MODEL = Path(__file__).parent.parent / "models" / "demo"
LINE_WIDTH = 72
FUNCTION_PROGRAM = "functions.expert"
"""The module in the command line of a function's process."""


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), default=MODEL, help="A checkpoint.")
def main(model: Path) -> None:
    """Serve the demo model with its experts as functions, and answer the prompts of three tenants."""
    try:
        asyncio.run(demo(model))
    except FaaSMoEError as error:
        raise click.ClickException(str(error)) from error


async def demo(model: Path) -> None:
    """Start everything, send all prompts at once, and print answers and figures."""
    questions = [
        Question(**question) for question in json.loads((MODEL / "prompts.json").read_text())["tenants"]
    ]
    with tempfile.TemporaryDirectory(prefix="faasmoe-demo-") as folder:
        target = Path(folder) / "demo"
        manifest = partition(model, target)
        click.echo(f"partitioned {manifest.name} into {len(manifest.blocks)} expert functions")
        settings = Path(folder) / "serve.yml"
        database = Path(folder) / "faasmoe.db"
        settings.write_text(f"database: {database}\nlog_level: warning\n")
        async with running("gateway", target, "--port", "0") as (gateway, gateway_url):
            click.echo(f"embedded OpenFaaS gateway on {gateway_url}")
            await output("deploy", target, "--gateway", gateway_url)
            click.echo("deployed the functions")
            keys = [
                await output("tenants", "add", question.tenant, "--database", database)
                for question in questions
            ]
            click.echo(f"added the tenants {', '.join(question.tenant for question in questions)}")
            serve = ("serve", target, "--gateway", gateway_url, "--port", "0", "--config", settings)
            async with running(*serve) as (server, url):
                click.echo(f"control plane on {url}\n")
                answers = await asyncio.gather(
                    *(ask(URL(url), key, question) for key, question in zip(keys, questions, strict=True))
                )
                async with Client.connect(URL(url)) as client:
                    report = await client.status()
                usage = await output("usage", "--database", database)
                lines = [*tenant_table(questions, answers), "", *memory_table(server, gateway, report)]
                click.echo("\n".join(["", *lines, "", "faasmoe usage", usage]))
    click.echo("\nall stopped")


async def ask(url: URL, key: str, question: Question) -> PromptAnswer:
    """Send one tenant's prompt, and print the answer line by line as it is generated."""
    width = max(len(question.tenant), 9)

    def say(line: str, bold: bool = False) -> None:
        click.echo(click.style(f"{question.tenant:<{width}} | ", dim=True) + click.style(line, bold=bold))

    pending = ""

    def on_text(text: str) -> None:
        nonlocal pending
        pending += text
        *lines, pending = wrapped(pending)
        for line in lines:
            say(line)

    say(question.text, bold=True)
    async with Client.connect(url, key) as client:
        answer = await client.ask(question, on_text)
    say(pending)
    return answer


def wrapped(text: str) -> list[str]:
    """The text in lines of at most LINE_WIDTH characters. The last one may be incomplete."""
    lines = []
    *whole, text = text.split("\n")
    for line in [*whole, text]:
        while len(line) > LINE_WIDTH:
            cut = line.rfind(" ", 0, LINE_WIDTH) + 1 or LINE_WIDTH
            lines.append(line[:cut].rstrip())
            line = line[cut:]
        lines.append(line)
    return lines


def tenant_table(questions: list[Question], answers: list[PromptAnswer]) -> Iterator[str]:
    """Latency and function calls of each tenant's answer."""
    header = ["tenant", "tokens", "first token", "tokens/s"]
    header += ["invocations", "cold starts", "new experts", "moved"]
    rows = []
    for question, answer in zip(questions, answers, strict=True):
        experts = answer.usage["experts"]
        rows.append(
            [
                question.tenant,
                f"{answer.usage['prompt_tokens']}+{answer.usage['completion_tokens']}",
                f"{answer.time_to_first_token * 1000:.0f} ms",
                f"{answer.tokens_per_second:.1f}",
                f"{experts['invocations']:.0f}",
                f"{experts['cold_starts']:.0f}",
                f"{experts['cold_experts']:.0f}",
                format_bytes(experts["wire_bytes"]),
            ]
        )
    yield from table(header, rows)


def memory_table(server: int, gateway: int, report: dict[str, Any]) -> Iterator[str]:
    """Private memory of each kind of process, and the number of experts in memory."""
    children = psutil.Process(gateway).children(recursive=True)
    functions = [child.pid for child in children if FUNCTION_PROGRAM in child.cmdline()]
    servers = [child.pid for child in children if child.pid not in functions]
    private = [_private(pid) for pid in functions]
    resident = sum(function["resident_experts"] for function in report["functions"])
    experts = sum(function["experts"] for function in report["functions"])
    rows = [
        ["control plane", "1", format_bytes(_private(server)), ""],
        ["gateway", "1", format_bytes(_private(gateway)), ""],
        ["fork server", str(len(servers)), format_bytes(sum(map(_private, servers))), ""],
    ]
    rows.append(
        ["functions", str(len(functions)), f"{format_bytes(sum(private))}", f"{resident} of {experts}"]
    )
    rows.append(["  one of them", "", f"{format_bytes(min(private))} to {format_bytes(max(private))}", ""])
    yield from table(["process", "count", "private memory", "resident experts"], rows)


def _private(pid: int) -> int:
    return psutil.Process(pid).memory_full_info().uss


if __name__ == "__main__":
    main()

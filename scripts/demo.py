"""The demo: the bundled model in expert functions, and a prompt for each of three tenants.

Everything is started as a user would start it, in processes of its own, and stopped at the end:
`faasmoe gateway`, `faasmoe deploy`, `faasmoe serve`. `make demo` calls this.
"""

import asyncio
import json
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import psutil
from yarl import URL

from control_plane.client import Answer, Client, Question
from control_plane.errors import FaaSMoEError
from control_plane.partition.partitioner import partition
from control_plane.tables import size, table

MODEL = Path(__file__).parent.parent / "models" / "demo"
START_SECONDS = 120.0
STOP_SECONDS = 20.0


@click.command()
@click.option(
    "--model", type=click.Path(exists=True, path_type=Path), default=MODEL, help="Another checkpoint."
)
def main(model: Path) -> None:
    """Serve the demo model with its experts as functions, and answer three tenants' prompts."""
    try:
        asyncio.run(demo(model))
    except FaaSMoEError as error:
        raise click.ClickException(str(error)) from error


async def demo(model: Path) -> None:
    """The whole of it."""
    questions = [
        Question(**question) for question in json.loads((MODEL / "prompts.json").read_text())["tenants"]
    ]
    with tempfile.TemporaryDirectory(prefix="faasmoe-demo-") as folder:
        target = Path(folder) / "demo"
        manifest = partition(model, target)
        click.echo(f"partitioned {manifest.name} into {len(manifest.blocks)} expert functions")
        async with command("gateway", target, "--port", "0") as (gateway, gateway_url):
            click.echo(f"embedded OpenFaaS gateway on {gateway_url}")
            async with command("deploy", target, "--gateway", gateway_url, url=False):
                click.echo("deployed the functions")
            async with command("serve", target, "--gateway", gateway_url, "--port", "0") as (server, url):
                click.echo(f"control plane on {url}\n")
                async with Client.connect(URL(url)) as client:
                    answers = [await ask(client, question) for question in questions]
                    report = await client.status()
                for line in (*tenant_table(questions, answers), "", *memory_table(server, gateway, report)):
                    click.echo(line)
    click.echo("\nall stopped")


@asynccontextmanager
async def command(*arguments: object, url: bool = True) -> AsyncIterator[tuple[int, str]]:
    """Run a faasmoe command; yields its process id and the address that it prints. Ended afterwards."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "control_plane",
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process.pid, await asyncio.wait_for(_address(process, url), START_SECONDS)
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), STOP_SECONDS)


async def _address(process: asyncio.subprocess.Process, wanted: bool) -> str:
    """The first address that the process prints; or, where none is wanted, wait for it to end."""
    if process.stdout is None:
        raise FaaSMoEError("the process has no output")
    async for line in process.stdout:
        found = re.search(rb"http://[\w.:]+", line)
        if wanted and found:
            return found.group().decode()
    if wanted or await process.wait() != 0:
        raise FaaSMoEError("a part of the demo did not start, see above")
    return ""


async def ask(client: Client, question: Question) -> Answer:
    """One tenant's prompt, its answer streamed to the terminal."""
    click.secho(f"{question.tenant}> {question.text}", bold=True)
    answer = await client.ask(question, lambda text: click.echo(text, nl=False))
    click.echo("\n")
    return answer


def tenant_table(questions: list[Question], answers: list[Answer]) -> Iterator[str]:
    """What each tenant got and what it took."""
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
                str(experts["invocations"]),
                str(experts["cold_starts"]),
                str(experts["cold_experts"]),
                size(experts["wire_bytes"]),
            ]
        )
    yield from table(header, rows)


def memory_table(server: int, gateway: int, report: dict[str, Any]) -> Iterator[str]:
    """Private memory of each process, and the experts that the functions hold."""
    functions = [child.pid for child in psutil.Process(gateway).children()]
    private = [_private(pid) for pid in functions]
    resident = sum(function["resident_experts"] for function in report["functions"])
    experts = sum(function["experts"] for function in report["functions"])
    rows = [["control plane", "1", size(_private(server)), ""], ["gateway", "1", size(_private(gateway)), ""]]
    rows.append(["functions", str(len(functions)), f"{size(sum(private))}", f"{resident} of {experts}"])
    rows.append(["  one of them", "", f"{size(min(private))} to {size(max(private))}", ""])
    yield from table(["process", "count", "private memory", "resident experts"], rows)


def _private(pid: int) -> int:
    return psutil.Process(pid).memory_full_info().uss


if __name__ == "__main__":
    main()

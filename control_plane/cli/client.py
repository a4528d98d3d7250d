"""`faasmoe prompt` and `status`: asking a control plane that runs."""

import asyncio
import json
import sys
from functools import partial

import click

from control_plane.cli.options import server_option


@click.command()
@click.argument("text")
@click.option("--tenant", required=True, help="Who is asking.")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=64, show_default=True, help="Tokens to generate."
)
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="0 always takes the likeliest.",
)
@click.option("--seed", type=click.IntRange(0), help="Makes a temperature above 0 repeatable.")
@click.option("--raw", is_flag=True, help="Continue TEXT as it is, without the chat template.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of streaming."
)
@server_option
def prompt(
    text: str,
    tenant: str,
    max_tokens: int,
    temperature: float,
    seed: int | None,
    raw: bool,
    as_json: bool,
    server: str,
) -> None:
    """Ask the model, and print its answer as it comes. TEXT "-" is read from standard input."""
    from control_plane.client import Client, Question
    from control_plane.config import parse_url

    question = Question(_text(text), tenant, max_tokens, temperature, seed, raw)

    async def run() -> None:
        async with Client.connect(parse_url(server)) as client:
            answer = await client.ask(question, on_text=None if as_json else partial(click.echo, nl=False))
            click.echo(json.dumps(answer.to_json(), ensure_ascii=False) if as_json else "")

    asyncio.run(run())


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything, as JSON.")
@server_option
def status(as_json: bool, server: str) -> None:
    """Show the functions: replicas, resident experts, memory, calls and the last one's age."""
    from control_plane.client import Client
    from control_plane.config import parse_url
    from control_plane.tables import status_lines

    async def run() -> None:
        async with Client.connect(parse_url(server)) as client:
            report = await client.status()
        for line in [json.dumps(report, indent=2)] if as_json else status_lines(report):
            click.echo(line)

    asyncio.run(run())


def _text(argument: str) -> str:
    """The prompt; raises a usage error for an empty one."""
    text = argument
    if argument == "-":
        try:
            text = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise click.UsageError(f"standard input is not UTF-8: {error}") from error
    if not text.strip():
        raise click.UsageError("the prompt is empty")
    return text

"""`faasmoe prompt` and `status`: asking a control plane that runs."""

import asyncio
import json
import os
import sys
from functools import partial
from pathlib import Path

import click

from control_plane.cli.options import server_option

KEY_VARIABLE = "FAASMOE_API_KEY"


@click.command()
@click.argument("text")
@click.option(
    "--tenant",
    default="default",
    show_default=True,
    help="Who is asking, where the server takes requests without keys.",
)
@click.option(
    "--key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"File with the tenant's key.  [default: the key in ${KEY_VARIABLE}, if any]",
)
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
    key_file: Path | None,
    max_tokens: int,
    temperature: float,
    seed: int | None,
    raw: bool,
    as_json: bool,
    server: str,
) -> None:
    """Ask the model, and print its answer as it comes. TEXT "-" is read from standard input.

    The key that `faasmoe tenants add` has printed says who is asking. It is read from a file or from
    $FAASMOE_API_KEY, and has no option of its own: other users of the machine can read command lines.
    """
    from control_plane.cli.api_client import Client, Question
    from control_plane.gateway_access import parse_url

    key = _key(key_file)
    question = Question(_text(text), tenant, max_tokens, temperature, seed, raw)

    async def run() -> None:
        async with Client.connect(parse_url(server), key) as client:
            answer = await client.ask(question, on_text=None if as_json else partial(click.echo, nl=False))
            click.echo(json.dumps(answer.to_json(), ensure_ascii=False) if as_json else "")

    asyncio.run(run())


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything, as JSON.")
@server_option
def status(as_json: bool, server: str) -> None:
    """Show the functions: replicas, resident experts, memory, calls and the last one's age."""
    from control_plane.cli.api_client import Client
    from control_plane.cli.tables import status_lines
    from control_plane.gateway_access import parse_url

    async def run() -> None:
        async with Client.connect(parse_url(server)) as client:
            report = await client.status()
        for line in [json.dumps(report, indent=2)] if as_json else status_lines(report):
            click.echo(line)

    asyncio.run(run())


def _key(file: Path | None) -> str | None:
    """The key of the file, or else of the environment, if there is one."""
    from control_plane.tenancy.keys import checked_key, read_key

    if file is not None:
        return read_key(file)
    key = os.environ.get(KEY_VARIABLE)
    return checked_key(key, f"the key in ${KEY_VARIABLE}") if key else None


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

"""`faasmoe prompt`: send a prompt to a control plane."""

import asyncio
import json
import sys
from functools import partial
from pathlib import Path

import click

from control_plane.cli.options import COUNT, client_key, key_option, server_option


@click.command()
@click.argument("text")
@click.option(
    "--tenant",
    default="default",
    show_default=True,
    help="Tenant to ask as, where the server takes requests without a key.",
)
@key_option
@click.option("--max-tokens", type=COUNT, default=64, show_default=True, help="Most tokens to generate.")
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Randomness of the answer; 0 always takes the likeliest token.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    help="Seed that makes an answer with a temperature above 0 repeatable.  [default: random]",
)
@click.option("--raw", is_flag=True, help="Continue TEXT itself, without the chat template.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object at the end, instead of a stream of text."
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
    """Send TEXT to the model and print its answer as it arrives. If TEXT is "-", read standard input.

    The tenant's key, which `faasmoe tenants add` prints, comes from a file or from $FAASMOE_API_KEY. There is
    no option for the key itself: other users of the machine can read command lines.

    \b
      faasmoe prompt "Write a function that sorts a list"
      faasmoe prompt - --key-file acme.key --max-tokens 200 < question.txt
    """
    from control_plane.cli.api_client import Client, PromptAnswer, Question
    from control_plane.faas.gateway_access import parse_url

    key = client_key(key_file)
    question = Question(_text(text), tenant, max_tokens, temperature, seed, raw)

    async def ask() -> PromptAnswer:
        async with Client.connect(parse_url(server), key) as client:
            return await client.ask(question, on_text=None if as_json else partial(click.echo, nl=False))

    answer = asyncio.run(ask())
    click.echo(json.dumps(answer.to_json(), ensure_ascii=False) if as_json else "")


def _text(argument: str) -> str:
    """The prompt. Raises a usage error if it is empty."""
    text = argument
    if argument == "-":
        try:
            text = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise click.UsageError(f"standard input is not UTF-8: {error}") from error
    if not text.strip():
        raise click.UsageError("the prompt is empty")
    return text

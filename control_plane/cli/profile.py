"""`faasmoe profile`: which experts a model's prompts use, for `faasmoe partition --profile`."""

import asyncio
from pathlib import Path

import click

from control_plane.cli.options import COUNT, PARTITION
from control_plane.signals import sigterm_exits


@click.command()
@click.argument("partition", type=PARTITION)
@click.option(
    "--prompts",
    "prompts_file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help='A prompt a line; or, in a .jsonl file, an object a line, with the prompt as its "prompt".',
)
@click.option("--max-tokens", type=COUNT, default=64, show_default=True, help="To generate for a prompt.")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    default="profile.safetensors",
    show_default=True,
    help="File to write.",
)
def profile(partition: Path, prompts_file: Path, max_tokens: int, output: Path) -> None:
    """Record which experts prompts use of the PARTITION folder's model, and which of them together.

    Its functions run for that on this machine. `faasmoe partition --profile` packs experts by the result.
    """
    from control_plane import profiling

    prompts = profiling.read_prompts(prompts_file)
    with sigterm_exits():
        made = asyncio.run(profiling.profile(partition, prompts, max_tokens))
    made.save(output)
    click.echo(f"{output}: {len(prompts)} prompts, {made.model}")
    for line in made.summary():
        click.echo(line)

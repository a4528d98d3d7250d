"""`faasmoe profile`: record which experts a model's prompts use, for `faasmoe partition --profile`."""

import asyncio
from pathlib import Path

import click

from control_plane.cli.options import COUNT, FILE, FOLDER, OUTPUT_FILE
from control_plane.errors import ConfigError
from control_plane.signals import sigterm_exits


@click.command()
@click.argument("partition", type=FOLDER)
@click.option(
    "--prompts",
    "prompts_file",
    required=True,
    type=FILE,
    metavar="FILE",
    help='File with one prompt per line or, if it ends in .jsonl, one object with a "prompt" per line.',
)
@click.option(
    "--max-tokens", type=COUNT, default=64, show_default=True, help="Most tokens to generate for each prompt."
)
@click.option(
    "--output",
    "-o",
    type=OUTPUT_FILE,
    default="profile.safetensors",
    show_default=True,
    help="File to write.",
)
def profile(partition: Path, prompts_file: Path, max_tokens: int, output: Path) -> None:
    """Record which experts prompts use, and which ones together.

    The functions of the PARTITION folder run on this machine meanwhile. `faasmoe partition --profile` packs
    experts and quantises weights by the result.

    \b
      faasmoe profile OUT_DIR --prompts prompts.txt
      faasmoe partition MODEL_DIR PACKED_DIR --profile profile.safetensors
    """
    from control_plane.offline import profiling

    if not output.absolute().parent.is_dir():
        # Before the prompts run, which may take long.
        raise ConfigError(f"cannot write {output}: {output.parent} is not a folder")
    prompts = profiling.read_prompts(prompts_file)
    with sigterm_exits():
        made = asyncio.run(profiling.profile(partition, prompts, max_tokens))
    made.save(output)
    click.echo(f"{output}: {len(prompts)} prompts, {made.model}")
    for line in made.summary():
        click.echo(line)

"""`faasmoe quality`: how well a partition predicts a text, alone and against another one."""

import asyncio
from pathlib import Path

import click

from control_plane.cli.options import COUNT, FILE, FOLDER
from control_plane.signals import sigterm_exits


@click.command()
@click.argument("partition", type=FOLDER)
@click.option(
    "--text", "text_file", required=True, type=FILE, metavar="FILE", help="File with UTF-8 text to read."
)
@click.option(
    "--against",
    type=FOLDER,
    metavar="PARTITION",
    help="Partition of the same model to compare with, such as one in the checkpoint's own type.",
)
@click.option(
    "--max-tokens", type=COUNT, default=8192, show_default=True, help="Most tokens of the text to read."
)
def quality(partition: Path, text_file: Path, against: Path | None, max_tokens: int) -> None:
    """Measure how well a partition predicts a text, to see what its types of weights cost.

    Prints the perplexity: 10 means that the model is as unsure of each next token as if it chose among 10.
    With --against, also how far its predictions are from another partition's: the mean KL divergence, which
    is 0 where they agree. It tells two types apart sooner than the perplexity does.

    The functions of the PARTITION folder run on this machine meanwhile. The text is read in windows of 512
    tokens; a few thousand tokens of the kind that you serve are enough.

    \b
      faasmoe partition MODEL_DIR OWN_DIR
      faasmoe partition MODEL_DIR INT8_DIR --dtype int8
      faasmoe quality INT8_DIR --text FILE --against OWN_DIR
    """
    from control_plane.offline import quality as offline

    text = offline.read_text(text_file)
    with sigterm_exits():
        measured = asyncio.run(offline.quality(partition, text, max_tokens, against))
    for line in measured.lines():
        click.echo(line)

"""Writes a GGUF file of random weights for llama.cpp.

\b
  python -m bench.support.gguf --config PARTITION/config.json --router-skew 1 --out MODEL.gguf

With the same seed and skew, the file has the same weights as a random partition. The vocabulary is made up,
since benchmarks send token ids. Weights are streamed to disk. Needs the package gguf (faasmoe's extra bench).
"""

import json
import tempfile
from pathlib import Path

import click
from transformers import AutoConfig

from bench.support.checkpoint import random_checkpoint
from bench.support.gguf.model import GgufModel
from bench.support.gguf.tensors import Q4_0, Q8_0
from bench.support.gguf.writer import write
from control_plane.errors import FaaSMoEError


@click.command(help=__doc__)
@click.option(
    "--config",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="config.json of a partition or a checkpoint.",
)
@click.option(
    "--type",
    "matrices",
    type=click.Choice((Q8_0, Q4_0)),
    default=Q8_0,
    show_default=True,
    help="Type of matrices. gpt-oss has its experts in MXFP4.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--router-skew", type=float, default=0.0, show_default=True, help="See bench.support.checkpoint."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write.")
def main(file: Path, matrices: str, seed: int, router_skew: float, out: Path) -> None:
    config = AutoConfig.for_model(**json.loads(file.read_text()))
    try:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = random_checkpoint(config, Path(folder), seed, router_skew)
            write(GgufModel.of_checkpoint(checkpoint, matrices), out)
    except FaaSMoEError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()

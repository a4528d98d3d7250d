"""Checks greedy answers against the unsplit model: `python -m bench.comparison.greedy MODEL`.

Two ways to compute the same logits in bf16 differ by rounding, so two tokens of almost equal likelihood can
change places. Answers are therefore not compared token by token. Instead, the unsplit model in transformers
reads each answer, and the *shortfall* of a token is the difference between its logit and the largest one at
that place, in standard deviations of the logits.
"""

import asyncio
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from control_plane.errors import FaaSMoEError

MAX_SHORTFALL = 0.25
"""Largest accepted shortfall, in standard deviations. A wrong expert causes over 1, rounding about 0.05."""
MAX_SHORTFALL_INT4 = 1.0
"""The same with weights of four bits. Rounded, random weights cause up to 0.75."""
CHECK_SECONDS = 600.0
"""Time limit for one check."""


@dataclass(frozen=True)
class GreedyAnswer:
    """Token ids of a prompt, and those that a server generated greedily after it."""

    prompt: Sequence[int]
    tokens: Sequence[int]


async def shortfall(model: Path, answers: Iterable[GreedyAnswer], threads: int) -> float:
    """The largest shortfall of all tokens, in standard deviations. Raises `FaaSMoEError`.

    The model runs in its own process, so that the memory of the check does not count as the harness's.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.comparison.greedy", str(model), "--threads", str(threads)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    body = json.dumps([asdict(answer) for answer in answers]).encode()
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            printed, _ = await process.communicate(body)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise FaaSMoEError("the unsplit model could not check the answers, see above")
    return float(printed)


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of torch.")
def main(model: Path, threads: int) -> None:
    """Read answers as JSON from standard input, and print the largest shortfall of their tokens."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(threads)
    model_class: Any = AutoModelForCausalLM
    unsplit = model_class.from_pretrained(model, dtype="auto").eval()
    largest = 0.0
    for answer in json.load(sys.stdin):
        prompt, tokens = answer["prompt"], answer["tokens"]
        with torch.inference_mode():
            logits = unsplit(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        largest = max(largest, float(((logits.amax(dim=1) - chosen) / logits.std(dim=1)).max()))
    click.echo(largest)


if __name__ == "__main__":
    main()

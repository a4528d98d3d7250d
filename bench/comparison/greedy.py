"""Whether an answer is the model's own: `python -m bench.comparison.greedy MODEL`, which checks and ends.

Two ways to compute the same logits in bf16 differ by rounding, so that now and then another of two almost
equal tokens is the likeliest. An answer is not compared token by token, therefore: the unsplit model in
transformers reads it, and tells by how much each of its tokens falls short of the likeliest one there.
"""

import asyncio
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from control_plane.errors import FaaSMoEError

MOST_SHORTFALL = 0.25
"""Of the logits' standard deviation. A wrong expert makes it more than one; rounding, a twentieth."""
CHECK_SECONDS = 600.0


@dataclass(frozen=True)
class GreedyAnswer:
    """What a server has generated, greedily, after a prompt."""

    prompt: Sequence[int]
    tokens: Sequence[int]


async def shortfall(model: Path, answers: Iterable[GreedyAnswer], threads: int) -> float:
    """The largest of all tokens, in standard deviations of their logits. Raises `FaaSMoEError`."""
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
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of torch.")
def main(model: Path, threads: int) -> None:
    """Read answers as JSON, and print by how much their tokens fall short of the likeliest ones."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(threads)
    unsplit = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
    most = 0.0
    for answer in json.load(sys.stdin):
        prompt, tokens = answer["prompt"], answer["tokens"]
        with torch.inference_mode():
            logits = unsplit(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        most = max(most, float(((logits.amax(dim=1) - chosen) / logits.std(dim=1)).max()))
    click.echo(most)


if __name__ == "__main__":
    main()

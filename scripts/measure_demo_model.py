"""Measures the demo model on validation text: loss by domain, and the experts that each domain uses.

\b
  python scripts/measure_demo_model.py --model models/demo

Prints two Markdown tables for the model card. `--work` is the same folder as for train_demo_model.py.
"""

import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import click
import torch
from demo_corpus import load_domains
from demo_tokens import split_passages, token_stream
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

WINDOW = 256
WINDOWS_PER_BATCH = 8


@dataclass(frozen=True)
class Measurement:
    """Measurements on the validation text of one domain."""

    tokens: int
    loss: float
    """Mean next-token loss, in nats."""
    expert_use: Tensor
    """Share of a layer's routed tokens for each expert [layers, experts]. Rows sum to 1."""


@torch.inference_mode()
def measure(model: PreTrainedModel, stream: Tensor) -> Measurement:
    """Run a domain's token stream [tokens] through the model, in windows."""
    windows = stream[: len(stream) // WINDOW * WINDOW].view(-1, WINDOW).long()
    uses = torch.zeros(model.config.num_hidden_layers, model.config.num_experts)
    loss_sum = 0.0
    for batch in windows.split(WINDOWS_PER_BATCH):  # type: ignore[no-untyped-call]
        output = model(input_ids=batch, output_router_logits=True, use_cache=False)
        logits = output.logits[:, :-1].flatten(0, 1).float()
        loss_sum += F.cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum").item()
        for layer, router_logits in enumerate(output.router_logits):
            chosen = router_logits.topk(model.config.num_experts_per_tok).indices
            uses[layer] += torch.bincount(chosen.flatten(), minlength=model.config.num_experts)
    predicted = windows.shape[0] * (WINDOW - 1)
    return Measurement(windows.numel(), loss_sum / predicted, uses / uses.sum(1, keepdim=True))


def loss_table(measurements: dict[str, Measurement]) -> list[str]:
    """One row per domain: tokens, loss in nats, perplexity."""
    rows = [
        f"| {name} | {found.tokens} | {found.loss:.3f} | {math.exp(found.loss):.1f} |"
        for name, found in measurements.items()
    ]
    return ["| domain | validation tokens | loss, nats | perplexity |", "|---|---|---|---|", *rows]


def expert_table(measurements: dict[str, Measurement]) -> list[str]:
    """One row per layer: distances between the domains' expert use, and the number of experts in use."""
    pairs = list(combinations(measurements, 2))
    head = ["layer", *(f"{one} / {other}" for one, other in pairs), "experts in use", "each domain's top 4"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    uses = {name: found.expert_use for name, found in measurements.items()}
    mean_use = torch.stack(list(uses.values())).mean(0)
    for layer, shares in enumerate(mean_use):
        distances = [f"{0.5 * (uses[a][layer] - uses[b][layer]).abs().sum():.2f}" for a, b in pairs]
        in_use = int((shares > 0.5 / len(shares)).sum())
        favourites = "; ".join(
            " ".join(map(str, sorted(use[layer].topk(4).indices.tolist()))) for use in uses.values()
        )
        lines.append(
            "| " + " | ".join([str(layer), *distances, f"{in_use} of {len(shares)}", favourites]) + " |"
        )
    return lines


@click.command(help=__doc__)
@click.option(
    "--model",
    "folder",
    type=click.Path(exists=True, path_type=Path),
    default="models/demo",
    show_default=True,
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default="build/demo",
    show_default=True,
    help="Folder of the training text.",
)
def main(folder: Path, work: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    _, validation = split_passages(load_domains(work))
    measurements = {
        name: measure(model, token_stream(passages, tokenizer)) for name, passages in validation.items()
    }
    click.echo("\n".join([*loss_table(measurements), "", *expert_table(measurements)]))


if __name__ == "__main__":
    main()

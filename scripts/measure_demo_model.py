"""Measure the demo model on text that it has not seen: loss per domain, and which experts each domain uses.

    python scripts/measure_demo_model.py --model models/demo

Prints two Markdown tables, as the model card shows them. `--work` is train_demo_model.py's own.
"""

import argparse
import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

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
    """What a domain's validation text showed."""

    tokens: int
    loss: float
    """Mean next-token loss, in nats."""
    expert_use: Tensor
    """[layers, experts]: the share of a layer's routed tokens that each expert got; rows sum to 1."""


@torch.inference_mode()
def measure(model: PreTrainedModel, stream: Tensor) -> Measurement:
    """Run a domain's token stream [tokens] through the model, in windows."""
    windows = stream[: len(stream) // WINDOW * WINDOW].view(-1, WINDOW).long()
    uses = torch.zeros(model.config.num_hidden_layers, model.config.num_experts)
    loss_sum = 0.0
    for batch in windows.split(WINDOWS_PER_BATCH):
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
    """One row per layer: how far apart the domains' expert use is, and how many experts are in use."""
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("models/demo"))
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="folder of the training text")
    arguments = parser.parse_args()

    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    _, validation = split_passages(load_domains(arguments.work))
    measurements = {
        name: measure(model, token_stream(passages, tokenizer)) for name, passages in validation.items()
    }
    print("\n".join([*loss_table(measurements), "", *expert_table(measurements)]))


if __name__ == "__main__":
    main()

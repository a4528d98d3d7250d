"""Records which experts a checkpoint's tokens are routed to, for the test of the eviction policy.

\b
  python scripts/record_routing.py --out tests/data/demo_routing.npz

Each prompt is answered in its own chat. The file's arrays have one row per token, sequence after sequence:

\b
  experts    [tokens, layers, top_k] int8: the chosen experts
  sequence   [tokens] int16: number of the sequence
  domain     [tokens] int8: number of the prompt's domain
  generated  [tokens] bool: false for tokens of the prompt
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "models" / "demo"
PROMPTS = ROOT / "bench" / "micro" / "demo_prompts.jsonl"


@dataclass(frozen=True)
class Routing:
    """The routing of one sequence."""

    experts: np.ndarray
    """Chosen experts [tokens, layers, top_k], without the last token, which the model does not compute."""
    prompt_tokens: int
    """Number of tokens of the prompt."""


@torch.inference_mode()
def record(model: Any, prompt: torch.Tensor, max_tokens: int) -> Routing:
    """Sample an answer to the prompt [1, n], and then compute prompt and answer again to get the routing.

    `model` is a model of transformers.
    """
    mask = torch.ones_like(prompt)
    tokens = model.generate(
        prompt, attention_mask=mask, max_new_tokens=max_tokens, do_sample=True, temperature=0.6, top_k=0
    )
    output = model(input_ids=tokens[:, :-1], output_router_logits=True, use_cache=False)
    top_k = model.config.num_experts_per_tok
    chosen = [logits.topk(top_k).indices for logits in output.router_logits]
    return Routing(torch.stack(chosen, 1).to(torch.int8).numpy(), prompt.shape[1])


def save(path: Path, routings: Sequence[Routing], domains: Sequence[int]) -> None:
    """Write the arrays that the docstring of the module describes."""
    lengths = [len(routing.experts) for routing in routings]
    generated = [np.arange(len(r.experts)) >= r.prompt_tokens for r in routings]
    np.savez_compressed(
        path,
        experts=np.concatenate([routing.experts for routing in routings]),
        sequence=np.repeat(np.arange(len(routings)), lengths).astype(np.int16),
        domain=np.repeat(domains, lengths).astype(np.int8),
        generated=np.concatenate(generated),
    )


@click.command(help=__doc__)
@click.option(
    "--model", "folder", type=click.Path(exists=True, path_type=Path), default=MODEL, help="A checkpoint."
)
@click.option("--prompts", type=click.Path(exists=True, path_type=Path), default=PROMPTS, help="JSON lines.")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=96, show_default=True, help="Tokens of an answer."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The .npz file to write.")
def main(folder: Path, prompts: Path, max_tokens: int, out: Path) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lines = [json.loads(line) for line in prompts.read_text().splitlines()]
    domains = list(dict.fromkeys(line["domain"] for line in lines))
    routings = []
    for line in lines:
        chat = [{"role": "user", "content": line["prompt"]}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        routings.append(record(model, prompt, max_tokens))
    save(out, routings, [domains.index(line["domain"]) for line in lines])
    tokens = sum(len(routing.experts) for routing in routings)
    click.echo(f"{out}: {tokens} tokens of {len(lines)} sequences")


if __name__ == "__main__":
    main()

"""Records which experts a checkpoint's tokens are routed to, for the test of the eviction policy.

    python scripts/record_routing.py --out tests/data/demo_routing.npz

Each prompt is answered as a chat of its own. The file's arrays have a row per token, one sequence's after the
other's: `experts` [tokens, layers, top_k] int8, `sequence` [tokens] int16, `domain` [tokens] int8, and
`generated` [tokens] bool, which is false for the prompt's tokens.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Routing:
    """One sequence's: the experts of each token, of which the first `prompt_tokens` were given."""

    experts: np.ndarray
    """[tokens, layers, top_k]; of the last token there is none, as nothing follows it."""
    prompt_tokens: int


@torch.inference_mode()
def record(model: Any, prompt: torch.Tensor, max_tokens: int) -> Routing:
    """Sample an answer of transformers' `model` to the prompt [1, n], and route all of it once more."""
    mask = torch.ones_like(prompt)
    tokens = model.generate(
        prompt, attention_mask=mask, max_new_tokens=max_tokens, do_sample=True, temperature=0.6, top_k=0
    )
    output = model(input_ids=tokens[:, :-1], output_router_logits=True, use_cache=False)
    top_k = model.config.num_experts_per_tok
    chosen = [logits.topk(top_k).indices for logits in output.router_logits]
    return Routing(torch.stack(chosen, 1).to(torch.int8).numpy(), prompt.shape[1])


def save(path: Path, routings: Sequence[Routing], domains: Sequence[int]) -> None:
    """Write the arrays that the module's docstring tells."""
    lengths = [len(routing.experts) for routing in routings]
    generated = [np.arange(len(r.experts)) >= r.prompt_tokens for r in routings]
    np.savez_compressed(
        path,
        experts=np.concatenate([routing.experts for routing in routings]),
        sequence=np.repeat(np.arange(len(routings)), lengths).astype(np.int16),
        domain=np.repeat(domains, lengths).astype(np.int8),
        generated=np.concatenate(generated),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "demo")
    parser.add_argument("--prompts", type=Path, default=ROOT / "bench" / "demo_prompts.jsonl")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    lines = [json.loads(line) for line in arguments.prompts.read_text().splitlines()]
    domains = list(dict.fromkeys(line["domain"] for line in lines))
    routings = []
    for line in lines:
        chat = [{"role": "user", "content": line["prompt"]}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        routings.append(record(model, prompt, arguments.max_tokens))
    save(arguments.out, routings, [domains.index(line["domain"]) for line in lines])
    print(f"{arguments.out}: {sum(len(r.experts) for r in routings)} tokens of {len(lines)} sequences")


if __name__ == "__main__":
    main()

"""Trains the bundled demo model: a small Qwen2-MoE that answers in three domains.

\b
  python scripts/train_demo_model.py --out models/demo --minutes 60

Runs on two CPU cores, and needs a Debian system with `apt-get` (see demo_corpus.py). Downloads and the
checkpoint go to the --work folder. With --resume, a stopped run continues from its last checkpoint. Only
running time counts, so a run that was paused or killed still gets its whole schedule.
"""

import math
import os
import time
from pathlib import Path
from typing import Any

import click
import torch
from demo_corpus import load_domains
from demo_tokens import build_tokenizer, split_passages, token_stream
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2MoeConfig, Qwen2MoeForCausalLM

SEQUENCE_LENGTH = 256
SEQUENCES_PER_DOMAIN = 4
PEAK_LEARNING_RATE = 2e-3
WARM_UP = 0.03
FINAL_LEARNING_RATE = 0.03
BALANCE_WEIGHT = 0.01
# A longer step means that the process was paused, which does not count as training time.
LONGEST_STEP_S = 10.0
CHECKPOINT_EVERY_S = 300.0


def model_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2MoeConfig:
    """7.4 million parameters: 6 layers of 16 routed experts, 4 of them per token, and one shared expert."""
    return Qwen2MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=192,
        moe_intermediate_size=96,
        shared_expert_intermediate_size=192,
        num_experts=16,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        router_aux_loss_coef=BALANCE_WEIGHT,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


def learning_rate(progress: float) -> float:
    """Linear warm-up, then cosine decay. `progress` is the share of the time budget that is spent."""
    if progress < WARM_UP:
        return PEAK_LEARNING_RATE * progress / WARM_UP
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARM_UP) / (1 - WARM_UP))))
    return PEAK_LEARNING_RATE * (FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine)


def mixed_batch(streams: list[Tensor], step: int) -> Tensor:
    """Random windows of all domains [domains * SEQUENCES_PER_DOMAIN, SEQUENCE_LENGTH]; `step` is the seed."""
    generator = torch.Generator().manual_seed(step)
    windows: list[Tensor] = []
    for stream in streams:
        starts = torch.randint(len(stream) - SEQUENCE_LENGTH, (SEQUENCES_PER_DOMAIN, 1), generator=generator)
        windows.append(stream[starts + torch.arange(SEQUENCE_LENGTH)])
    return torch.cat(windows).long()


def imbalance(router_logits: Tensor, top_k: int) -> Tensor:
    """How unevenly a layer uses its experts, from 1 (evenly) to the number of experts (only one is used).

    `router_logits` is [tokens, experts]. The Switch Transformer's balancing loss (arXiv 2101.03961, eq. 4).
    """
    experts = router_logits.shape[-1]
    chosen = router_logits.topk(top_k).indices.flatten()
    shares = torch.bincount(chosen, minlength=experts) / chosen.numel()
    return experts * (shares * router_logits.float().softmax(-1).mean(0)).sum()


def losses(model: Qwen2MoeForCausalLM, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Mean next-token loss in nats, and the layers' mean imbalance.

    Imbalance is computed over the whole mixed batch, so that experts may specialise in a domain, but for each
    layer: transformers' loss pools all layers, so that one may collapse if another compensates for it.
    """
    with torch.autocast("cpu", torch.bfloat16):
        output = model(input_ids=input_ids, output_router_logits=True, use_cache=False)
    prediction = F.cross_entropy(output.logits[:, :-1].flatten(0, 1).float(), input_ids[:, 1:].flatten())
    layers = [imbalance(logits, model.config.num_experts_per_tok) for logits in output.router_logits]
    return prediction, torch.stack(layers).mean()


class Trainer:
    """Trains a model within a time budget, and saves checkpoints of model, optimizer and time."""

    def __init__(self, model: Qwen2MoeForCausalLM, checkpoint: Path, budget_s: float) -> None:
        self.model = model
        self.checkpoint = checkpoint
        self.budget_s = budget_s
        self.step = 0
        self.elapsed_s = 0.0
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.1)

    def run(self, streams: list[Tensor]) -> None:
        """Train until the time budget is spent, and save checkpoints regularly."""
        saved_s = self.elapsed_s
        while self.elapsed_s < self.budget_s:
            started = time.monotonic()
            prediction, uneven = self._train_step(mixed_batch(streams, self.step))
            self.elapsed_s += min(time.monotonic() - started, LONGEST_STEP_S)
            self.step += 1
            if self.step % 50 == 0:
                progress = f"{self.elapsed_s:.0f} s, step {self.step}"
                print(f"{progress}: loss {prediction:.3f}, imbalance {uneven:.3f}", flush=True)
            if self.elapsed_s - saved_s > CHECKPOINT_EVERY_S:
                self.save()
                saved_s = self.elapsed_s
        self.save()

    def _train_step(self, input_ids: Tensor) -> tuple[float, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.elapsed_s / self.budget_s)
        prediction, uneven = losses(self.model, input_ids)
        (prediction + BALANCE_WEIGHT * uneven).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return prediction.item(), uneven.item()

    def save(self) -> None:
        """Write the checkpoint. If the process is killed meanwhile, the earlier checkpoint remains."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)

    def resume(self) -> None:
        """Load the checkpoint. Raises FileNotFoundError if there is none."""
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]


def export(model: Qwen2MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write model (in bf16) and tokenizer for transformers."""
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.bfloat16()
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True, temperature=0.7, top_p=0.95, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out, save_jinja_files=False)


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the trained model.")
@click.option("--minutes", type=float, default=60.0, show_default=True, help="Training time, without pauses.")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default="build/demo",
    show_default=True,
    help="Folder for text and checkpoint.",
)
@click.option("--resume", is_flag=True, help="Continue from the checkpoint in --work.")
def main(out: Path, minutes: float, work: Path, resume: bool) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    work.mkdir(parents=True, exist_ok=True)
    training, _ = split_passages(load_domains(work))
    tokenizer = build_tokenizer(training)
    streams = [token_stream(passages, tokenizer) for passages in training.values()]
    click.echo(f"tokens: {dict(zip(training, map(len, streams), strict=True))}")
    model = Qwen2MoeForCausalLM(model_config(tokenizer))
    model.set_experts_implementation("grouped_mm")
    trainer = Trainer(model, work / "checkpoint.pt", minutes * 60)
    if resume:
        trainer.resume()
    trainer.run(streams)
    export(model, tokenizer, out)


if __name__ == "__main__":
    main()

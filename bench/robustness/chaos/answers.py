"""Greedy answers that are known before the test, from transformers' unsplit model."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.comparison.greedy import GreedyAnswer
from bench.support.requests import random_prompt

PROMPT_LENGTHS = (8, 24, 48)
MARGIN = 1e-3
"""Least difference between the two largest logits. Sums in another order differ by some 1e-5 in float32."""


def known_answers(model: Path, count: int, max_tokens: int, seed: int) -> list[GreedyAnswer]:
    """Answers of `max_tokens` to at most `count` random prompts of several lengths, in float32.

    Prompts whose answers depend on rounding are left out: with each batch, a server computes the same logits
    in another order. End tokens do not end an answer.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    model_class: Any = AutoModelForCausalLM
    unsplit = model_class.from_pretrained(model, dtype=torch.float32).eval()
    # Without the model's own end tokens.
    unsplit.generation_config = GenerationConfig(do_sample=False)  # type: ignore[no-untyped-call]
    numbers = random.Random(seed)
    found: list[GreedyAnswer] = []
    threads = torch.get_num_threads()
    # More threads than one would wait for each other most of the time.
    torch.set_num_threads(1)
    try:
        for number, length in enumerate(PROMPT_LENGTHS):
            share = count // len(PROMPT_LENGTHS) + (number < count % len(PROMPT_LENGTHS))
            seeds = [numbers.randrange(1 << 31) for _ in range(share)]
            prompts = [random_prompt(length, each, unsplit.config.vocab_size) for each in seeds]
            found += _answers(unsplit, prompts, max_tokens) if prompts else []
    finally:
        torch.set_num_threads(threads)
    return found


def _answers(unsplit: Any, prompts: Sequence[list[int]], max_tokens: int) -> list[GreedyAnswer]:
    """Answers to prompts of the same length."""
    import torch

    generated = unsplit.generate(
        torch.tensor(prompts),
        attention_mask=torch.ones(len(prompts), len(prompts[0]), dtype=torch.long),
        max_new_tokens=max_tokens,
        output_logits=True,
        return_dict_in_generate=True,
    )
    largest = torch.stack(generated.logits).topk(2).values
    certain = ((largest[..., 0] - largest[..., 1]).amin(dim=0) >= MARGIN).tolist()
    answers: list[list[int]] = generated.sequences[:, len(prompts[0]) :].tolist()
    return [
        GreedyAnswer(prompt, answer)
        for prompt, answer, clear in zip(prompts, answers, certain, strict=True)
        if clear
    ]

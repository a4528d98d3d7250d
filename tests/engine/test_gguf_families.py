"""A model of every architecture that is read from GGUF is served as transformers computes it.

Each file has what llama.cpp's conversion writes, its config and tokenizer among it, and is split into three.
"""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bench.support.gguf.conversion import MODEL_TYPES, converted
from control_plane.architecture.trial import TOLERANCE, random_model
from control_plane.partition.checkpoint.stored_tokenizer import ModelTokenizer
from control_plane.partition.partitioner import partition
from tests.support.models.gguf_files import Stored, plain, quantised, split, write_gguf
from tests.support.models.gguf_models import gguf_config
from tests.support.models.gguf_tokenizers import bpe_metadata
from tests.support.models.tiny_chat_model import chat_tokenizer
from tests.support.models.tiny_engine import greedy_answers, tokens_of
from tests.support.running import sequence, served

pytestmark = pytest.mark.slow

MAX_TOKENS = 12
PROMPTS = ("c", "the cat sat on the mat, and then the dog ate 12 rats\n")
SPLITS = {"glm4_moe_lite": "glm4"}
"""The ways to split text that tell models of one architecture apart."""


def random_gguf_model(model_type: str, vocabulary: int) -> PreTrainedModel:
    sizes = {"intermediate_size": 64} if model_type == "gpt_oss" else {}
    config = gguf_config(model_type, vocab_size=vocabulary, initializer_range=0.2, **sizes)
    return random_model(config).requires_grad_(False)


def with_mxfp4(model: Any, tensors: dict[str, Stored]) -> dict[str, Stored]:
    """The tensors with experts in MXFP4, which the model gets too."""
    stored = {
        name: quantised(each.values, "MXFP4") if name.endswith("_exps.weight") else each
        for name, each in tensors.items()
    }
    for number, layer in enumerate(model.model.layers):
        parts = (stored[f"blk.{number}.ffn_{part}_exps.weight"].values for part in ("gate", "up", "down"))
        gate, up, down = (torch.from_numpy(part.swapaxes(1, 2).copy()) for part in parts)
        layer.mlp.experts.gate_up_proj.copy_(torch.stack([gate, up], dim=3).flatten(2))
        layer.mlp.experts.down_proj.copy_(down)
    return stored


def write_parts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> list[Path]:
    """The files of a model with a tokenizer."""
    model_type = model.config.model_type
    architecture, metadata, values = converted(model)
    tensors = {name: plain(each) for name, each in values.items()}
    if model_type == "gpt_oss":
        tensors = with_mxfp4(model, tensors)
    tokenizer.save_pretrained(folder / "tokenizer")
    metadata |= bpe_metadata(folder / "tokenizer", SPLITS.get(model_type, "gpt-2"))
    whole = write_gguf(folder / f"{model_type}.gguf", architecture, metadata, tensors)
    parts = split(whole, folder / "parts", 3)
    whole.unlink()
    return parts


async def answers(folder: Path, prompts: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[list[int]]]:
    """The logits after each prompt, and greedy answers to all at once."""
    async with served(folder, max_batch_tokens=16, max_sequences=4) as serving:
        logits = [await asyncio.to_thread(serving.prompt_logits, prompt) for prompt in prompts]
        streams = [serving.engine.submit([sequence(prompt, MAX_TOKENS)]) for prompt in prompts]
        return logits, [await tokens_of(stream) for stream in streams]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_model_in_three_files_is_served(model_type: str, tmp_path: Path) -> None:
    theirs = chat_tokenizer()
    model = random_gguf_model(model_type, len(theirs))
    parts = write_parts(model, theirs, tmp_path)
    manifest = partition(parts[0], tmp_path / "partition", dtype="f32")
    assert manifest.model_type == model_type

    ours = ModelTokenizer.load(tmp_path / "partition")
    token_ids = [ours.backend.encode(prompt).ids for prompt in PROMPTS]
    if model_type not in SPLITS:
        assert token_ids == [theirs.encode(prompt) for prompt in PROMPTS]
    assert ours.chat_templates == {"default": theirs.chat_template}

    prompts = [torch.tensor([each]) for each in token_ids]
    logits, tokens = asyncio.run(answers(tmp_path / "partition", prompts))
    for found, prompt in zip(logits, prompts, strict=True):
        wanted = model(prompt).logits[0, -1]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * max(1, wanted.abs().max()))
    model.generation_config.eos_token_id = theirs.eos_token_id
    assert tokens == [greedy_answers(model, prompt, MAX_TOKENS)[0] for prompt in prompts]

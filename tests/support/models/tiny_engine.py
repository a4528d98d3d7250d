"""A tiny model behind real functions, transformers' reference answers, and helpers to drive an engine."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from yarl import URL

from control_plane.app import build_invoker
from control_plane.config import ServeConfig
from control_plane.engine.engine import Engine
from control_plane.engine.experts.dispatcher import Dispatcher
from control_plane.engine.experts.prefetcher import Prefetcher
from control_plane.engine.loader import load_model
from control_plane.engine.model.dense_model import DenseModel, MemorySize
from control_plane.engine.model.program_model import ProgramModel
from control_plane.engine.model.runner import ModelRunner
from control_plane.engine.scheduling.interruption import Interruption
from control_plane.engine.scheduling.policy import FairAcrossTenants
from control_plane.engine.scheduling.scheduler import Scheduler
from control_plane.engine.state.sequence import SamplingParams, Sequence
from control_plane.engine.state.stopwatch import Stopwatch
from control_plane.engine.stream import TokenStream
from control_plane.faas.connection import Address
from control_plane.faas.invocation import ExpertInvoker, ResidentLimits
from control_plane.partition.granularity import Granularity
from control_plane.partition.manifest import Manifest
from control_plane.partition.partitioner import partition
from tests.support.models.checkpoints import save_checkpoint, tiny_model

MAX_BATCH_TOKENS = 8
MAX_SEQUENCES = 4
CONTEXT_LENGTH = 16384
"""Tokens of the model's context; more than fit into the KV cache of `tests.support.running.served`."""
NUM_PAGES = 200
"""Pages of the KV cache, of 16 tokens each."""
LONG = 2500
"""Tokens of an answer that no test waits for; the cache has room for MAX_SEQUENCES of them."""


@dataclass(frozen=True)
class Reference:
    """A partition, and the model that it was made from. The model has no end token."""

    folder: Path
    manifest: Manifest
    model: PreTrainedModel

    @classmethod
    def make(cls, folder: Path) -> "Reference":
        """Write the partition below `folder`."""
        # With several threads, `generate` is far slower for a model as small as this.
        torch.set_num_threads(1)
        # Wide heads make a page hold few tokens.
        model = tiny_model(
            "qwen2_moe",
            initializer_range=0.2,
            head_dim=64,
            eos_token_id=None,
            max_position_embeddings=CONTEXT_LENGTH,
        )
        save_checkpoint(model, folder / "model")
        manifest = partition(folder / "model", folder / "partition", granularity=Granularity(3, 3))
        return cls(folder / "partition", manifest, model)

    def answer(self, prompt: list[int], max_tokens: int) -> list[int]:
        """The greedy answer of transformers, as tokens."""
        (answer,) = greedy_answers(self.model, torch.tensor([prompt]), max_tokens)
        return answer


def greedy_answers(model: PreTrainedModel, prompts: torch.Tensor, max_tokens: int) -> list[list[int]]:
    """The greedy answers of transformers' `generate` to prompts [n, length]."""
    generate: Any = model.generate
    mask = torch.ones_like(prompts)
    output = generate(prompts, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False)
    answers: list[list[int]] = output[:, prompts.shape[1] :].tolist()
    return answers


def make_dispatcher(
    manifest: Manifest,
    invoker: ExpertInvoker,
    *,
    interruption: Interruption | None = None,
    stopwatch: Stopwatch | None = None,
    prefetcher: Prefetcher | None = None,
) -> Dispatcher:
    """A dispatcher without resident limits. Parts that the test does not share are made here."""
    return Dispatcher(
        manifest,
        invoker,
        ResidentLimits(),
        interruption or Interruption(),
        stopwatch or Stopwatch(),
        prefetcher,
    )


@asynccontextmanager
async def engine_behind(
    gateway: URL,
    reference: Reference,
    *,
    deadline: float = 60.0,
    eos_ids: frozenset[int] = frozenset(),
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    max_sequences: int = MAX_SEQUENCES,
    num_pages: int = NUM_PAGES,
    prefix_cache: bool = False,
    interruption: Interruption | None = None,
) -> AsyncIterator[Engine]:
    """A separate engine for the partition. An invocation fails after `deadline` seconds."""
    interruption = interruption or Interruption()
    address = Address(gateway.host or "", gateway.port or 80)
    config = ServeConfig(invocation_deadline=deadline)
    invoker = build_invoker(lambda _: address, lambda _: True, config)
    stopwatch = Stopwatch()
    dispatcher = make_dispatcher(reference.manifest, invoker, interruption=interruption, stopwatch=stopwatch)
    model = load_model(reference.folder, reference.manifest, threads=1)
    model.attach(dispatcher)
    cache = model.new_memory(MemorySize(num_pages, 2 * max_sequences, CONTEXT_LENGTH, threads=1))
    scheduler = Scheduler(
        cache, max_batch_tokens, max_sequences, FairAcrossTenants(), keeps_prefixes=prefix_cache
    )
    runner = ModelRunner(model, cache, dispatcher, interruption, stopwatch, prefetcher=None)
    engine = Engine(scheduler, runner, invoker, CONTEXT_LENGTH, eos_ids)
    async with engine.running():
        yield engine


def token_apart_from(*tokens: int) -> int:
    """A token of the tiny model's vocabulary other than these."""
    return min(set(range(64)) - {*tokens})


@contextmanager
def embedded_as(
    model: DenseModel, token: int, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> Iterator[None]:
    """Until the context ends, `change` replaces the token's embeddings [n, H]."""
    assert isinstance(model, ProgramModel)
    stored = model.embedding.rows

    def changed(token_ids: list[int]) -> NDArray[Any]:
        rows, chosen = stored(token_ids), np.array(token_ids) == token
        if chosen.any():
            rows[chosen] = change(rows[chosen])
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.embedding, "rows", changed)
        yield


def idle(engine: Engine) -> bool:
    """Whether the engine holds no sequence and no page of the KV cache."""
    status = engine.status()
    return (status.running, status.waiting, status.kv_cache_used) == (0, 0, 0.0)


def random_prompt(length: int) -> list[int]:
    """A random prompt, the same for each call with this length."""
    return torch.randint(64, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def make_sequence(length: int, max_tokens: int) -> Sequence:
    """A greedy sequence of a random prompt."""
    return Sequence("test", "tenant", random_prompt(length), SamplingParams(max_tokens))


async def tokens_of(stream: TokenStream) -> list[int]:
    """All tokens of the stream's only sequence. Raises the stream's error."""
    (tokens,) = await all_tokens_of(stream)
    return tokens


async def all_tokens_of(stream: TokenStream) -> list[list[int]]:
    """All tokens of each of the stream's sequences. Raises the stream's error."""
    tokens: list[list[int]] = [[] for _ in stream.sequences]
    async for number, generated in stream:
        assert generated.token_id is not None
        tokens[number].append(generated.token_id)
    return tokens


async def until(condition: Callable[[], bool]) -> None:
    """Wait until another thread makes the condition true."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)

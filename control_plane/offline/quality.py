"""How well a partition predicts a text: its perplexity, and how far it is from another partition.

The text is read in windows, each on its own, so that memory does not grow with the text. Of a partition that
has run, the dense model and the final hidden states stay, from which its head computes logits a few rows at a
time. The model's weights are mapped from its file: but for the head, they leave memory when it is short.
"""

import asyncio
import codecs
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from control_plane.engine.experts.dispatcher import RowsFailed
from control_plane.engine.model.dense_model import DenseModel
from control_plane.engine.model.logits import Logits, log_softmax
from control_plane.engine.model.runner import ModelRunner, all_logits
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.state import sequence
from control_plane.errors import ConfigError, FaaSMoEError
from control_plane.offline.engine import offline_engine
from control_plane.partition.manifest import Manifest

WINDOW = 512
"""Tokens that are read at once, without those before them."""
MAX_TEXT_BYTES = 4 << 20
"""The most that is read of a text."""


@dataclass(frozen=True)
class Quality:
    """How well a partition predicts the tokens of a text."""

    num_tokens: int
    """Tokens that were predicted: all but the first of each window."""
    perplexity: float
    reference_perplexity: float | None = None
    """The perplexity of the partition that this one was compared with."""
    divergence: float | None = None
    """The mean over the tokens of KL(reference || partition), in nats."""

    def lines(self) -> Iterator[str]:
        """The text that says it."""
        yield f"perplexity: {self.perplexity:.4f} ({self.num_tokens} tokens)"
        if self.reference_perplexity is not None:
            change = self.perplexity / self.reference_perplexity - 1
            yield f"perplexity of the other: {self.reference_perplexity:.4f}; this one: {change:+.2%}"
            yield f"mean KL divergence from the other: {self.divergence:.5f}"


@dataclass(frozen=True)
class Reading:
    """What remains of a partition that has read a text: `read` returns it."""

    partition: Path
    model: DenseModel
    windows: list[list[int]]
    hidden_states: list[NDArray[Any]]
    """For each window [tokens, hidden]."""

    def log_probabilities(self) -> Iterator[tuple[NDArray[np.int64], Logits]]:
        """Tokens [n], and the log-probabilities [n, vocabulary] of all tokens in their places.

        Few rows at a time: a row is as wide as the vocabulary.
        """
        for window, hidden_states in zip(self.windows, self.hidden_states, strict=True):
            start = 1
            for logits in all_logits(self.model, hidden_states[:-1]):
                tokens = np.array(window[start : start + len(logits)], np.int64)
                start += len(logits)
                yield tokens, log_softmax(logits)


def read_text(path: Path) -> str:
    """The start of a text, of at most `MAX_TEXT_BYTES`. Raises `ConfigError` if it is not UTF-8 or blank."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEXT_BYTES)
        # The end may be a part of a character, which a decoder keeps for later.
        text = codecs.getincrementaldecoder("utf-8")().decode(content)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}") from error
    if not text.strip():
        raise ConfigError(f"{path} has no text")
    return text


async def quality(partition: Path, text: str, max_tokens: int, against: Path | None = None) -> Quality:
    """How well a partition predicts the first `max_tokens` of a text, and how far it is from `against`.

    One partition runs after the other. Raises `PartitionError` and `GatewayError`, and `ConfigError` for a
    text of fewer than two tokens, or partitions that read it as different tokens.
    """
    reading = await read(partition, text, max_tokens)
    if against is None:
        return await asyncio.to_thread(_alone, reading)
    return await asyncio.to_thread(compare, reading, await read(against, text, max_tokens))


async def read(partition: Path, text: str, max_tokens: int) -> Reading:
    """Have a partition read the first `max_tokens` of a text. Raises what `quality` raises."""
    manifest = Manifest.load(partition)
    async with offline_engine(partition, manifest) as (runner, encoder, engine):
        try:
            token_ids = (await encoder.encode(text))[:max_tokens]
        except FaaSMoEError as error:
            raise ConfigError(f"the text: {error}") from error
        length = min(WINDOW, engine.max_length)
        windows = [token_ids[start : start + length] for start in range(0, len(token_ids), length)]
        # A window of one token predicts nothing.
        windows = [window for window in windows if len(window) > 1]
        if not windows:
            raise ConfigError("the text has fewer than two tokens: there is nothing to predict")
        hidden_states = [await asyncio.to_thread(_hidden_states, runner, window) for window in windows]
    return Reading(partition, runner.model, windows, hidden_states)


def _hidden_states(runner: ModelRunner, window: list[int]) -> NDArray[Any]:
    """The final hidden states [tokens, hidden] of a window. Raises `GatewayError`."""
    text = sequence.Sequence("quality", "quality", window, sequence.SamplingParams(max_tokens=0))
    runner.kv_cache.pages.allocate(text, len(window))
    try:
        return runner.run([Chunk(text, 0, len(window))])
    except RowsFailed as failed:
        raise failed.error from failed
    finally:
        runner.kv_cache.free(text)


def _vocabulary(reading: Reading) -> int:
    return reading.model.sizes.vocab_size


def _alone(reading: Reading) -> Quality:
    losses = [_loss(tokens, logs) for tokens, logs in reading.log_probabilities()]
    num_tokens = _num_tokens(reading.windows)
    return Quality(num_tokens, math.exp(sum(losses) / num_tokens))


def compare(reading: Reading, reference: Reading) -> Quality:
    """How far one partition is from another that has read the same text.

    Raises `ConfigError` if it was other tokens to them.
    """
    if reading.windows != reference.windows or _vocabulary(reading) != _vocabulary(reference):
        raise ConfigError(
            f"{reference.partition} reads the text as other tokens than {reading.partition}: compare "
            "partitions of one model"
        )
    loss = reference_loss = divergence = 0.0
    for (tokens, logs), (_, wanted) in zip(
        reading.log_probabilities(), reference.log_probabilities(), strict=True
    ):
        loss += _loss(tokens, logs)
        reference_loss += _loss(tokens, wanted)
        divergence += float((np.exp(wanted) * (wanted - logs)).sum(dtype=np.float64))
    num_tokens = _num_tokens(reading.windows)
    perplexities = math.exp(loss / num_tokens), math.exp(reference_loss / num_tokens)
    return Quality(num_tokens, *perplexities, divergence / num_tokens)


def _loss(tokens: NDArray[np.int64], logs: Logits) -> float:
    """The sum of the tokens' negative log-probabilities."""
    return -float(np.take_along_axis(logs, tokens[:, None], axis=1).sum(dtype=np.float64))


def _num_tokens(windows: Sequence[Sequence[int]]) -> int:
    return sum(len(window) - 1 for window in windows)

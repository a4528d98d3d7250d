"""`faasmoe quality` agrees with transformers: the perplexity of a text, and the divergence of two models."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from control_plane.errors import ConfigError
from control_plane.offline.quality import MAX_TEXT_BYTES, WINDOW, read_text
from control_plane.partition.partitioner import partition
from tests.support.command_line import error_line, faasmoe, usage_error
from tests.support.models.tiny_chat_model import GRANULARITY

pytestmark = pytest.mark.slow

TEXT = "the cat sat on the mat, and the rat ate what was left. " * 30
PERPLEXITY = r"perplexity: ([\d.]+) \((\d+) tokens\)"


@dataclass(frozen=True)
class Variant:
    """The chat model with a colder head, as transformers runs it and as a partition."""

    model: Any
    partition: Path


@pytest.fixture(scope="module")
def variant(chat_checkpoint: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Variant:
    folder = tmp_path_factory.mktemp("variant")
    model = AutoModelForCausalLM.from_pretrained(chat_checkpoint).requires_grad_(False)
    model.lm_head.weight *= 0.5
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    partition(folder / "model", folder / "partition", granularity=GRANULARITY)
    return Variant(model, folder / "partition")


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text"
    file.write_text(TEXT)
    return file


def predictions(model: Any, token_ids: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each window, the tokens after the first one, and the log-probabilities in their places."""
    windows = torch.split(torch.tensor(token_ids), WINDOW)
    return [(window[1:], model(window[None]).logits[0, :-1].double().log_softmax(-1)) for window in windows]


def perplexity(model: Any, token_ids: list[int]) -> float:
    logs = [logs.gather(1, tokens[:, None]) for tokens, logs in predictions(model, token_ids)]
    return math.exp(-torch.cat(logs).mean().item())


def test_the_perplexity_is_that_of_transformers(
    chat_partition: Path, text_file: Path, unsplit: Any, tokenizer: Any
) -> None:
    result = faasmoe("quality", chat_partition, "--text", text_file)
    assert result.exit_code == 0, result.output
    found = re.fullmatch(PERPLEXITY, result.output.strip())
    assert found, result.output
    token_ids = tokenizer(TEXT).input_ids
    assert len(token_ids) > WINDOW
    assert int(found[2]) == sum(len(tokens) for tokens, _ in predictions(unsplit, token_ids))
    assert float(found[1]) == pytest.approx(perplexity(unsplit, token_ids), rel=1e-4)


def test_the_divergence_is_that_of_transformers(
    chat_partition: Path, text_file: Path, variant: Variant, unsplit: Any, tokenizer: Any
) -> None:
    options = "--text", text_file, "--against", chat_partition, "--max-tokens", 100
    result = faasmoe("quality", variant.partition, *options)
    assert result.exit_code == 0, result.output
    first, second, third = result.output.splitlines()
    token_ids = tokenizer(TEXT).input_ids[:100]
    ours, reference = perplexity(variant.model, token_ids), perplexity(unsplit, token_ids)
    found = re.fullmatch(PERPLEXITY, first)
    assert found
    assert int(found[2]) == 99
    assert float(found[1]) == pytest.approx(ours, rel=1e-4)
    of_other = re.fullmatch(r"perplexity of the other: ([\d.]+); this one: ([-+][\d.]+)%", second)
    assert of_other
    assert float(of_other[1]) == pytest.approx(reference, rel=1e-4)
    assert float(of_other[2]) == pytest.approx(100 * (ours / reference - 1), abs=0.02)
    ((_, logs),) = predictions(variant.model, token_ids)
    ((_, wanted),) = predictions(unsplit, token_ids)
    divergence = (wanted.exp() * (wanted - logs)).sum(-1).mean().item()
    assert divergence > 0.01
    assert float(third.removeprefix("mean KL divergence from the other: ")) == pytest.approx(
        divergence, abs=1e-5
    )


def test_a_partition_does_not_diverge_from_itself(chat_partition: Path, text_file: Path) -> None:
    options = "--text", text_file, "--against", chat_partition, "--max-tokens", 20
    assert faasmoe("quality", chat_partition, *options).output.endswith("from the other: 0.00000\n")


def test_partitions_with_other_tokens_are_refused(
    chat_checkpoint: Path, chat_partition: Path, text_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(chat_checkpoint, tmp_path / "model")
    tokenizer = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(tokenizer))
    other = tmp_path / "other"
    partition(tmp_path / "model", other, granularity=GRANULARITY)
    message = error_line(faasmoe("quality", chat_partition, "--text", text_file, "--against", other))
    assert message.startswith(f"{other} reads the text as other tokens than {chat_partition}")


def test_a_text_of_one_token_is_refused(chat_partition: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x")
    result = faasmoe("quality", chat_partition, "--text", tmp_path / "text")
    assert error_line(result) == "the text has fewer than two tokens: there is nothing to predict"


def test_the_command_requires_a_text(chat_partition: Path) -> None:
    assert "--text" in usage_error(faasmoe("quality", chat_partition))


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (lambda file: file.write_bytes(b"\xff\xfe and more"), "is not UTF-8"),
        (lambda file: file.write_text(" \n"), "has no text"),
        (lambda file: file.mkdir(), "cannot read"),
    ],
)
def test_bad_texts_are_named(tmp_path: Path, write: Callable[[Path], object], problem: str) -> None:
    write(tmp_path / "text")
    with pytest.raises(ConfigError, match=problem) as caught:
        read_text(tmp_path / "text")
    assert str(tmp_path / "text") in str(caught.value)


def test_a_long_text_is_cut_between_characters(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x" + "é" * MAX_TEXT_BYTES)
    text = read_text(tmp_path / "text")
    assert text == "x" + "é" * (MAX_TEXT_BYTES // 2 - 1)

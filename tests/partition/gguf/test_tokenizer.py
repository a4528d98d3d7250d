"""The tokenizer in a GGUF file is that of the model, and stored like that of any checkpoint."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.stored_tokenizer import STORED_TOKENIZER, ModelTokenizer
from control_plane.partition.checkpoint.tokenizer import read_tokenizer
from tests.support.models.gguf_files import write_gguf
from tests.support.models.gguf_tokenizers import BYTE, CONTROL, NORMAL, UNKNOWN, bpe_metadata
from tests.support.paths import DEMO_MODEL

pytestmark = pytest.mark.slow

TEXTS = [
    "It was the best of times, it was the 1st of 2025 times.",
    "  def f(x):\n\treturn x**2  # Ömega\n\n",
    "Häuser; 東京 \N{OHM SIGN} it's we'll",
    "<|im_start|>user\nHello<|im_end|>\n",
]


def read(folder: Path, metadata: dict[str, Any]) -> ModelTokenizer:
    stored = read_tokenizer(write_gguf(folder / "model.gguf", "qwen2moe", metadata, {}))
    assert stored is not None
    (folder / STORED_TOKENIZER).write_bytes(stored)
    return ModelTokenizer.load(folder)


def test_the_bundled_tokenizer(tmp_path: Path) -> None:
    theirs: Any = AutoTokenizer.from_pretrained(DEMO_MODEL)
    ours = read(tmp_path, bpe_metadata(DEMO_MODEL, "gpt-2"))
    for text in TEXTS:
        token_ids = theirs.encode(text)
        assert ours.backend.encode(text).ids == token_ids
        assert ours.decode(token_ids) == theirs.decode(token_ids)
    assert ours.eos_token_id == theirs.eos_token_id
    assert ours.chat_templates == {"default": theirs.chat_template}
    assert ours.special_tokens["eos_token"] == theirs.eos_token


def test_sentencepiece(tmp_path: Path) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["▁", "a", "b", "▁a", "ab", "▁ab"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*pieces, *words],
        "tokenizer.ggml.scores": [0.0] * len(pieces) + [-9.0, -8.0, -7.0, -3.0, -2.0, -1.0],
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(words)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    ours = read(tmp_path, metadata)
    known = {word: len(pieces) + place for place, word in enumerate(words)}
    assert ours.backend.encode("ab a").ids == [1, known["▁ab"], known["▁a"]]
    assert ours.eos_token_id == 2
    assert ours.chat_templates == {}


@pytest.mark.parametrize(
    "split", ["glm4", "refact", "deepseek-llm", "deepseek-v3", "qwen2", "gpt-4o", "lfm2"]
)
def test_ways_to_split_text(split: str, tmp_path: Path) -> None:
    ours = read(tmp_path, bpe_metadata(DEMO_MODEL, split))
    for text in TEXTS:
        assert ours.decode(ours.backend.encode(text).ids) == text


def test_digits(tmp_path: Path) -> None:
    words = {
        split: [word for word, _ in read_words(tmp_path / split, split, "in 12345 ways")]
        for split in ("glm4", "refact", "deepseek-v3", "deepseek-llm")
    }
    assert words == {
        "glm4": ["in", "Ġ", "123", "45", "Ġways"],
        "refact": ["in", "Ġ", "1", "2", "3", "4", "5", "Ġways"],
        "deepseek-v3": ["in", "Ġ", "123", "45", "Ġways"],
        "deepseek-llm": ["in", "Ġ", "12345", "Ġways"],
    }


def read_words(folder: Path, split: str, text: str) -> list[tuple[str, tuple[int, int]]]:
    folder.mkdir()
    words: list[tuple[str, tuple[int, int]]] = read(
        folder, bpe_metadata(DEMO_MODEL, split)
    ).backend.pre_tokenizer.pre_tokenize_str(text)
    return words


def test_an_unknown_way_to_split_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match="way to split text, 'martian', is not known"):
        read(tmp_path, bpe_metadata(DEMO_MODEL, "martian"))


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer.ggml.eos_token_id": 10**6},
        {"tokenizer.ggml.merges": ["a"]},
        {"tokenizer.ggml.model": "bert"},
        {"tokenizer.ggml.tokens": 7},
    ],
)
def test_malformed_tokenizers(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match="cannot load the tokenizer in ") as caught:
        read(tmp_path, bpe_metadata(DEMO_MODEL, "gpt-2") | change)
    assert "\n" not in str(caught.value)


def test_a_file_without_a_tokenizer(tmp_path: Path) -> None:
    assert read_tokenizer(write_gguf(tmp_path / "model.gguf", "qwen2moe", {}, {})) is None

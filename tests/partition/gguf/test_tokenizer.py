"""The tokenizer in a GGUF file is that of the model, and stored like that of any checkpoint."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.stored_tokenizer import STORED_TOKENIZER, ModelTokenizer
from control_plane.partition.checkpoint.tokenizer import read_tokenizer
from tests.support.models.gguf_files import write_gguf
from tests.support.models.gguf_tokenizers import BYTE, CONTROL, NORMAL, UNKNOWN, bpe_metadata
from tests.support.models.tiny_chat_model import END, chat_tokenizer
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


def test_tokens_that_are_found_whole(tmp_path: Path) -> None:
    """Their names need not be in the alphabet of bytes, and keep their numbers."""
    backend = chat_tokenizer().backend_tokenizer
    backend.add_special_tokens(["<\uff5cBOS\u2581here\uff5c>", "<\uff5cUser\uff5c>"])
    backend.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "  cat")])
    make: Any = PreTrainedTokenizerFast
    theirs = make(
        tokenizer_object=backend, bos_token="<\uff5cBOS\u2581here\uff5c>", eos_token=END, add_bos_token=True
    )
    theirs.chat_template = "{{ bos_token }}"
    theirs.save_pretrained(tmp_path / "theirs")
    bos = {"tokenizer.ggml.bos_token_id": theirs.bos_token_id, "tokenizer.ggml.add_bos_token": True}
    ours = read(tmp_path, bpe_metadata(tmp_path / "theirs", "gpt-2") | bos)
    assert len(ours.vocabulary()) == len(theirs)
    for text in (*TEXTS, "<\uff5cUser\uff5c>the cat<think>  cat, <\uff5cBOS\u2581here\uff5c><|end|>"):
        assert ours.backend.encode(text).ids == theirs.encode(text)
    assert ours.special_tokens["bos_token"] == theirs.bos_token
    assert ours.eos_token_id == theirs.eos_token_id


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
    without = read(tmp_path, metadata | {"tokenizer.ggml.add_space_prefix": False})
    assert without.backend.encode("ab a").ids == [1, known["ab"], known["\u2581a"]]
    assert without.decode([known["ab"], known["\u2581a"]]) == "ab a"


@pytest.mark.parametrize(
    "split",
    ["glm4", "refact", "deepseek-llm", "deepseek-coder", "deepseek-v3", "kimi-k2", "qwen2", "gpt-4o", "lfm2"],
)
def test_ways_to_split_text(split: str, tmp_path: Path) -> None:
    ours = read(tmp_path, bpe_metadata(DEMO_MODEL, split))
    for text in TEXTS:
        assert ours.decode(ours.backend.encode(text).ids) == text


def test_digits(tmp_path: Path) -> None:
    words = {
        split: [word for word, _ in read_words(tmp_path / split, split, "in 12345 ways")]
        for split in ("glm4", "refact", "deepseek-v3", "deepseek-llm", "deepseek-coder", "kimi-k2")
    }
    assert words == {
        "glm4": ["in", "Ġ", "123", "45", "Ġways"],
        "refact": ["in", "Ġ", "1", "2", "3", "4", "5", "Ġways"],
        "deepseek-v3": ["in", "Ġ", "123", "45", "Ġways"],
        "deepseek-llm": ["in", "Ġ", "12345", "Ġways"],
        "deepseek-coder": ["in", "Ġ", "1", "2", "3", "4", "5", "Ġways"],
        "kimi-k2": ["in", "Ġ", "123", "45", "Ġways"],
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


def test_a_file_that_does_not_say_how_text_is_split_is_refused(tmp_path: Path) -> None:
    metadata = bpe_metadata(DEMO_MODEL, "gpt-2")
    del metadata["tokenizer.ggml.pre"]
    with pytest.raises(PartitionError, match="does not say how its tokenizer splits text"):
        read(tmp_path, metadata)


@pytest.mark.parametrize(("said", "begins"), [(None, True), (True, True), (False, False)])
def test_llama3_begins_texts_unless_the_file_denies_it(
    said: bool | None, begins: bool, tmp_path: Path
) -> None:
    metadata = bpe_metadata(DEMO_MODEL, "llama-bpe")
    metadata["tokenizer.ggml.bos_token_id"] = metadata["tokenizer.ggml.eos_token_id"]
    if said is not None:
        metadata["tokenizer.ggml.add_bos_token"] = said
    ours = read(tmp_path, metadata)
    assert (ours.backend.encode("text").ids[0] == ours.eos_token_id) == begins


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

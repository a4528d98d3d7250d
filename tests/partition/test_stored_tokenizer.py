"""A partition's tokenizer is that of transformers, and a file that is not one is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.stored_tokenizer import STORED_TOKENIZER, ModelTokenizer
from control_plane.partition.checkpoint.tokenizer import read_tokenizer
from tests.support.models.checkpoints import tiny_config
from tests.support.paths import DEMO_MODEL

TEXTS = ["", "It was the best of times.", " \N{OHM SIGN}<|im_end|>\n", "a" * 300]


def stored(folder: Path) -> ModelTokenizer:
    """The bundled model's tokenizer, stored in a folder and loaded from there."""
    tokenizer = read_tokenizer(DEMO_MODEL)
    assert tokenizer is not None
    (folder / STORED_TOKENIZER).write_bytes(tokenizer)
    return ModelTokenizer.load(folder)


def test_a_stored_tokenizer_is_that_of_transformers(tmp_path: Path) -> None:
    ours, theirs = stored(tmp_path), AutoTokenizer.from_pretrained(DEMO_MODEL)
    for text in TEXTS:
        token_ids = theirs.encode(text)
        assert ours.backend.encode(text).ids == token_ids
        assert ours.decode(token_ids) == theirs.decode(token_ids)
        assert ours.decode(token_ids, True) == theirs.decode(token_ids, skip_special_tokens=True)
    assert ours.vocabulary() == theirs.get_vocab()
    assert ours.eos_token_id == theirs.eos_token_id
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.chat_templates == {"default": theirs.chat_template}
    special = {each for each, token in ours.added_tokens.items() if token.special}
    assert special == {each for each, token in theirs.added_tokens_decoder.items() if token.special}


HOSTILE = [
    b"",
    b"[]",
    b"\xff",
    b'{"a":' * 100_000,
    b'{"tokenizer": {}, "eos_token_id": null, "special_tokens": {}, "chat_templates": {}}',
]


@pytest.mark.parametrize("data", HOSTILE, ids=["empty", "list", "bytes", "deep", "field missing"])
def test_a_hostile_file_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / STORED_TOKENIZER).write_bytes(data)
    with pytest.raises(PartitionError, match=r"^cannot load \S+: .*$"):
        ModelTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokenizer", {}),
        ("tokenizer", {"model": 5}),
        ("eos_token_id", "two"),
        ("special_tokens", {"bos_token": 1}),
        ("chat_templates", ["a"]),
    ],
)
def test_a_hostile_field_is_refused_in_one_line(tmp_path: Path, field: str, value: Any) -> None:
    stored(tmp_path)
    content = json.loads((tmp_path / STORED_TOKENIZER).read_bytes()) | {field: value}
    (tmp_path / STORED_TOKENIZER).write_text(json.dumps(content))
    with pytest.raises(PartitionError, match=r"^cannot load \S+: .*$"):
        ModelTokenizer.load(tmp_path)


def test_a_missing_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    tiny_config("mixtral").save_pretrained(tmp_path)
    assert read_tokenizer(tmp_path) is None
    with pytest.raises(PartitionError, match=r"has no tokenizer: the checkpoint had none$"):
        ModelTokenizer.load(tmp_path)

"""What llama.cpp's conversion writes of tokenizers."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""The kinds of tokens."""


def bpe_metadata(folder: Path, split: str) -> dict[str, Any]:
    """The metadata for a tokenizer.json of the kind of GPT-2's, which splits text in a way of that name."""
    document = json.loads((folder / "tokenizer.json").read_text())
    added = {token["content"]: token["id"] for token in document["added_tokens"]}
    vocabulary = document["model"]["vocab"] | added
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [each if isinstance(each, str) else " ".join(each) for each in document["model"]["merges"]]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if token in added else NORMAL for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.chat_template": tokenizer.chat_template,
    }

"""The tokenizer in a GGUF file's metadata, made into one of transformers.

transformers converts the vocabulary. It must not import torch here (see `tokenizer_process`).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.gguf.architectures.metadata import Metadata
from control_plane.partition.checkpoint.gguf.container import read_header

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LISTS = {
    "tokens": "tokens",
    "scores": "scores",
    "token_type": "token_type",
    "merges": "merges",
}
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_TEMPLATE = "tokenizer.chat_template"
_GPT2_SPLITS = ("default", "gpt-2", "olmo", "dolphin", "phi-2", "jina-en", "mpt", "granite-docling")
"""llama.cpp's names of ways to split text into words that are those of GPT-2."""


def gguf_tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model's first file. Raises PartitionError, or whatever the library does."""
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

    metadata = Metadata(path, read_header(path).metadata)
    stored = _stored(metadata)
    backend, options = convert_gguf_tokenizer(metadata.architecture, stored)  # type: ignore[no-untyped-call]
    tokens = stored["tokens"]
    special = {f"{name}_token": _token(metadata, tokens, key) for name, key in _SPECIAL.items()}
    is_sentencepiece = stored["tokenizer_type"] == "llama"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=_templates(metadata),
        # Older files of this kind do not say so, but expect it.
        add_bos_token=metadata.entries.get("tokenizer.ggml.add_bos_token", is_sentencepiece) is True,
        add_eos_token=metadata.entries.get("tokenizer.ggml.add_eos_token", False) is True,
        clean_up_tokenization_spaces=False,
        **special,
        **options,
    )


def has_tokenizer(path: Path) -> bool:
    """Whether a model's first file has one."""
    return "tokenizer.ggml.tokens" in read_header(path).metadata


def _stored(metadata: Metadata) -> dict[str, Any]:
    """The vocabulary by the names that transformers has for its parts."""
    kind, split = metadata.text("tokenizer.ggml.model"), metadata.text("tokenizer.ggml.pre")
    stored: dict[str, Any] = {"tokenizer_type": kind, "pre_tokenizer_type": split}
    for name, key in _LISTS.items():
        if (values := metadata.entries.get(f"tokenizer.ggml.{key}")) is not None:
            stored[name] = values if isinstance(values, list) else values.tolist()
    if kind == "gpt2":
        _check_split(metadata, split)
    return stored


def _check_split(metadata: Metadata, split: str | None) -> None:
    """Refuse a way to split text that is not known: with another, prompts would have other tokens."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if split is not None and split not in GGUF_PRE_TOKENIZER_SPLITS and split not in _GPT2_SPLITS:
        raise PartitionError(
            f"{metadata.path}: the tokenizer's way to split text, {split[:40]!r}, is not known"
        )


def _token(metadata: Metadata, tokens: list[str], name: str) -> str | None:
    number = metadata.token(name)
    if number is None:
        return None
    if number >= len(tokens):
        raise PartitionError(f"{metadata.path}: there is no token {number} of {len(tokens)}")
    return tokens[number]


def _templates(metadata: Metadata) -> str | dict[str, str] | None:
    """The chat template, or several by their names."""
    default = metadata.text(_TEMPLATE)
    named = {
        key.removeprefix(f"{_TEMPLATE}."): metadata.text(key) or ""
        for key in metadata.entries
        if key.startswith(f"{_TEMPLATE}.")
    }
    return {"default": default or "", **named} if named else default

"""The tokenizer in a GGUF file's metadata, made into one of transformers.

transformers converts the vocabularies of SentencePiece's kind. It must not import torch here (see
`tokenizer_process`).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.gguf.architectures.metadata import Metadata
from control_plane.partition.checkpoint.gguf.byte_level import begins_texts, byte_level_tokenizer
from control_plane.partition.checkpoint.gguf.container import read_header

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_TEMPLATE = "tokenizer.chat_template"
_SPACE = "\u2581"
"""How SentencePiece spells a space."""
_LISTS = ("tokens", "scores", "token_type", "merges")


def gguf_tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model's first file. Raises PartitionError, or whatever the library does."""
    from transformers import PreTrainedTokenizerFast

    metadata = Metadata(path, read_header(path).metadata)
    stored = _stored(metadata)
    tokens, split = stored["tokens"], metadata.text("tokenizer.ggml.pre")
    if metadata.text("tokenizer.ggml.model") == "gpt2":
        backend = byte_level_tokenizer(tokens, stored.get("token_type", []), stored.get("merges", []), split)
        begins_with_bos = begins_texts(split)
    else:
        backend = _converted(metadata, stored)
        # Older files of SentencePiece's kind do not say so, but expect it.
        begins_with_bos = metadata.text("tokenizer.ggml.model") == "llama"
    special = {f"{name}_token": _token(metadata, tokens, key) for name, key in _SPECIAL.items()}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        chat_template=_templates(metadata),
        add_bos_token=metadata.entries.get("tokenizer.ggml.add_bos_token", begins_with_bos) is True,
        add_eos_token=metadata.entries.get("tokenizer.ggml.add_eos_token", False) is True,
        clean_up_tokenization_spaces=False,
        **special,
    )


def has_tokenizer(path: Path) -> bool:
    """Whether a model's first file has one."""
    return "tokenizer.ggml.tokens" in read_header(path).metadata


def _stored(metadata: Metadata) -> dict[str, Any]:
    """The lists of the vocabulary."""
    stored: dict[str, Any] = {}
    for name in _LISTS:
        if (values := metadata.entries.get(f"tokenizer.ggml.{name}")) is not None:
            stored[name] = values if isinstance(values, list) else values.tolist()
    return stored


def _converted(metadata: Metadata, stored: dict[str, Any]) -> "Tokenizer":
    """The tokenizer of another kind than GPT-2's, as transformers converts it."""
    from tokenizers import decoders, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

    kind = metadata.text("tokenizer.ggml.model")
    backend, _ = convert_gguf_tokenizer(metadata.architecture, stored | {"tokenizer_type": kind})
    if kind == "llama" and metadata.entries.get("tokenizer.ggml.add_space_prefix") is False:
        # transformers takes it for granted that texts begin with a space.
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        backend.decoder = decoders.Sequence(
            [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    return backend


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

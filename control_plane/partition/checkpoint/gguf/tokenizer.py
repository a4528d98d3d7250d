"""The tokenizer in a GGUF file's metadata, made into one of transformers.

transformers converts the vocabulary. It must not import torch here (see `tokenizer_process`).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.gguf.architectures.metadata import Metadata
from control_plane.partition.checkpoint.gguf.container import read_header

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_LISTS = {
    "tokens": "tokens",
    "scores": "scores",
    "token_type": "token_type",
    "merges": "merges",
}
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_TEMPLATE = "tokenizer.chat_template"
_GPT2 = ("default", "gpt-2", "olmo", "dolphin", "phi-2", "mpt", "granite-docling")
"""llama.cpp's names of ways to split text into words that are GPT-2's, which is the library's default."""
_DIGITS_AND_GPT2 = ("refact", "starcoder", "command-r", "smollm", "codeshell", "exaone")
"""Those that make a word of each digit before."""
_LIKE = {"glm4": "llama-bpe", "chatglm-bpe": "llama-bpe"}
"""Those that transformers knows by another name."""
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_PATTERNS = {
    "deepseek-llm": (
        r"[\r\n]",
        r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
        r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"\s+$",
        r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
        r"\p{N}+",
    ),
    "deepseek-v3": _DEEPSEEK_V3,
    "hunyuan-dense": _DEEPSEEK_V3,
}
"""Those of models' own tokenizers that transformers does not know: patterns that are applied in order."""


def gguf_tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model's first file. Raises PartitionError, or whatever the library does."""
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

    metadata = Metadata(path, read_header(path).metadata)
    stored = _stored(metadata)
    backend, options = convert_gguf_tokenizer(metadata.architecture, stored)
    if stored["tokenizer_type"] == "gpt2":
        _set_split(backend, stored["pre_tokenizer_type"], metadata)
    tokens = stored["tokens"]
    special = {f"{name}_token": _token(metadata, tokens, key) for name, key in _SPECIAL.items()}
    is_sentencepiece = stored["tokenizer_type"] == "llama"
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
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
    split = metadata.text("tokenizer.ggml.pre")
    stored: dict[str, Any] = {
        "tokenizer_type": metadata.text("tokenizer.ggml.model"),
        "pre_tokenizer_type": _LIKE.get(split or "", split),
    }
    for name, key in _LISTS.items():
        if (values := metadata.entries.get(f"tokenizer.ggml.{key}")) is not None:
            stored[name] = values if isinstance(values, list) else values.tolist()
    return stored


def _set_split(backend: "Tokenizer", split: str | None, metadata: Metadata) -> None:
    """Let text be split into words as the model's own tokenizer does it.

    Raises PartitionError for a way that is not known: with another, prompts would have other tokens.
    """
    from tokenizers import Regex, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if split is None or split in GGUF_PRE_TOKENIZER_SPLITS or split in _GPT2:
        return
    if split in _DIGITS_AND_GPT2:
        parts = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    elif split in _PATTERNS:
        parts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in _PATTERNS[split]]
        parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    else:
        known = f"the tokenizer's way to split text, {split[:40]!r}, is not known"
        raise PartitionError(f"{metadata.path}: {known}")
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)


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

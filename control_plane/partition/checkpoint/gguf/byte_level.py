"""Tokenizers of GPT-2's kind in GGUF: bytes spelled as characters, merged within the words of a text.

A file has the name of the way in which its model splits text into words. The ways are those of llama.cpp's
`llama-vocab.cpp`, as the models' own tokenizers have them.
"""

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from control_plane.errors import PartitionError

_CONTROL, _USER_DEFINED = 3, 4
"""The kinds of tokens that are found in a text before it is split. Their names are not spelled in bytes."""

_GPT2 = frozenset(
    {"default", "gpt-2", "olmo", "dolphin", "phi-2", "mpt", "granite-docling", "gigachat", "trillion"}
)
"""Names of ways that are GPT-2's own."""
_DIGITS_AND_GPT2 = frozenset(
    {"refact", "starcoder", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"}
)
"""Those that make a word of each digit before."""
_LIKE = {
    "glm4": "llama-bpe",
    "glm5": "llama-bpe",
    "chatglm-bpe": "llama-bpe",
    "hunyuan": "qwen2",
    "solar-open": "qwen2",
    "stablelm2": "qwen2",
    "hunyuan-dense": "deepseek-v3",
    "joyai-llm": "deepseek-v3",
}
"""Those that are the same as another."""
_PATTERNS = {
    "deepseek-coder": (
        r"[\r\n]",
        r"\s?\p{L}+",
        r"\s?\p{P}+",
        r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
        r"\p{N}",
    ),
    "deepseek-llm": (
        r"[\r\n]",
        r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
        r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"\s+$",
        r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
        r"\p{N}+",
    ),
    "deepseek-v3": (
        r"\p{N}{1,3}",
        r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "kimi-k2": (
        r"\p{Han}+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}
"""Those that transformers does not know: patterns that are applied in order."""
_LLAMA3 = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken"})
"""Those of tokenizers that begin texts with a token unless the file denies it."""
_WHOLE_WORDS = _LLAMA3 | {"glm4", "glm5"}
"""Those of tokenizers that have a word as one token if there is one, whatever the merges give."""


def byte_level_tokenizer(
    tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[str], split: str | None
) -> Tokenizer:
    """The tokenizer. Raises PartitionError for an unknown way to split, or whatever the library does."""
    pairs: Any = [tuple(merge.split(" ")) for merge in merges]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=split in _WHOLE_WORDS))
    tokenizer.pre_tokenizer = _pre_tokenizer(split)
    tokenizer.decoder = decoders.ByteLevel()
    for kind, is_special in ((_CONTROL, True), (_USER_DEFINED, False)):
        tokenizer.add_tokens(
            [
                AddedToken(token, normalized=False, special=is_special)
                for token, each in zip(tokens, kinds, strict=False)
                if each == kind and token
            ]
        )
    return tokenizer


def begins_texts(split: str | None) -> bool:
    """Whether a tokenizer that splits so puts its first token before texts if the file does not say."""
    return split in _LLAMA3


def _pre_tokenizer(split: str | None) -> pre_tokenizers.PreTokenizer:
    """What splits a text into words. With another way than the model's, prompts would have other tokens."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if split is None:
        raise PartitionError("the file does not say how its tokenizer splits text (tokenizer.ggml.pre)")
    name = _LIKE.get(split, split)
    patterns = _PATTERNS.get(name)
    if patterns is None and name in GGUF_PRE_TOKENIZER_SPLITS:
        patterns = (GGUF_PRE_TOKENIZER_SPLITS[name],)
    parts: list[pre_tokenizers.PreTokenizer] = []
    if patterns is not None:
        parts += [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    elif name in _DIGITS_AND_GPT2:
        parts.append(pre_tokenizers.Digits(individual_digits=True))
    elif name not in _GPT2:
        raise PartitionError(f"the tokenizer's way to split text, {split[:40]!r}, is not known")
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=patterns is None))
    return pre_tokenizers.Sequence(parts)

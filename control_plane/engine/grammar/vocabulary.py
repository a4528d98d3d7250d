"""The bytes that each token of a vocabulary stands for."""

import re
from collections.abc import Mapping

from tokenizers import Tokenizer

from control_plane.engine.grammar.compiler import Vocabulary
from control_plane.partition.checkpoint.stored_tokenizer import ModelTokenizer

_FALLBACK_BYTE = re.compile("<0x([0-9A-F]{2})>")
"""The name of a one-byte token in SentencePiece's vocabularies."""
_MARK = b"\xff"
"""llguidance marks special tokens by this first byte, which no text has."""
_SPACE = "\u2581"
"""A space in the names of SentencePiece's tokens."""


def byte_alphabet(tokenizer: Tokenizer) -> Mapping[str, int]:
    """The characters that stand for bytes, as in GPT-2's encoder; empty without a byte-level vocabulary."""
    if "ByteLevel" not in str(tokenizer.decoder):
        return {}
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + number): byte for number, byte in enumerate(others)}


def named_bytes(name: str, alphabet: Mapping[str, int]) -> bytes | None:
    """The bytes of a token by its name in the vocabulary; None if the name does not reveal them."""
    if alphabet and all(character in alphabet for character in name):
        return bytes(alphabet[character] for character in name)
    fallback = None if alphabet else _FALLBACK_BYTE.fullmatch(name)
    return bytes([int(fallback[1], 16)]) if fallback else None


def vocabulary_of(tokenizer: ModelTokenizer, size: int, end_ids: frozenset[int]) -> Vocabulary:
    """The vocabulary of a model that knows `size` tokens. The tokenizer may know more, or fewer."""
    alphabet = byte_alphabet(tokenizer.backend)
    added = tokenizer.added_tokens
    tokens = [b""] * size
    for name, token_id in tokenizer.vocabulary().items():
        if 0 <= token_id < size:
            token = name.encode(errors="replace") if token_id in added else _bytes(name, alphabet)
            tokens[token_id] = b"" if token.startswith(_MARK) else token
    special = {token_id for token_id, token in added.items() if token.special}
    known_ends = frozenset(token_id for token_id in end_ids if token_id < size)
    return Vocabulary(tokens, frozenset(each for each in special if each < size) | known_ends, known_ends)


def _bytes(name: str, alphabet: Mapping[str, int]) -> bytes:
    known = named_bytes(name, alphabet)
    return name.replace(_SPACE, " ").encode(errors="replace") if known is None else known

"""What the control plane and the process that encodes prompts send each other.

A frame is its length (4 bytes, little-endian) and one message in MessagePack, checked by its declared type:
neither side trusts the other with more than data.
"""

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

LENGTH_BYTES = 4
MAX_ANSWER_BYTES = 64 << 20
"""The longest answer that is read."""


class Setup(Struct):
    """The first message: the tokenizer and the templates."""

    tokenizer: str
    """The tokenizer, as the `tokenizers` library writes it as JSON."""
    split_special_tokens: bool
    """Whether a special token's name in a text is text."""
    templates: Mapping[str, str]
    """The chat templates by their names."""
    special_tokens: Mapping[str, str]
    """The variables with special tokens that templates use, such as `bos_token`."""
    orphan_seconds: int
    """The process ends itself when a request takes longer than this."""
    memory_bytes: int
    """How much more memory than after its start the process may take."""


class EncodeText(Struct, tag=True):
    """Asks for the tokens of a text."""

    text: str
    add_special_tokens: bool


class EncodeChat(Struct, tag=True):
    """Asks for the tokens of a chat, which a template turns into text."""

    template: str
    variables: bytes
    """The template's variables except special tokens, as a JSON object: `messages` and others."""
    continue_final_message: bool = False
    """Whether the text ends with that of the last message."""


class FindEndOfTurn(Struct, tag=True):
    """Asks for the token that a template writes after an assistant's message: one token, or none."""

    template: str


class MakeGrammar(Struct, tag=True):
    """Asks for the grammar of a `Structure`. The answer has one only if it compiles."""

    kind: str
    value: Any
    field: str


class Grammar(Struct, tag=True):
    """The answer with a grammar."""

    text: str


class Tokens(Struct, tag=True):
    """The answer with token ids, 4 bytes each, in the machine's byte order."""

    ids: bytes


class Refused(Struct, tag=True):
    """The template refuses the messages, for a reason that it states, or the structure is not valid."""

    reason: str


class Failed(Struct, tag=True):
    """The template or the tokenizer has failed."""

    part: Literal["template", "tokenizer"]
    error: str


Request = EncodeText | EncodeChat | FindEndOfTurn | MakeGrammar
Answer = Tokens | Grammar | Refused | Failed

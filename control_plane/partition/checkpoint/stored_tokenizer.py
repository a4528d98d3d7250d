"""A model's tokenizer as a partition stores it: read once by transformers, served without it.

transformers takes two seconds and 200 MB to be imported. The library `tokenizers`, which does the work in
either case, takes 5 MB.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec
from tokenizers import AddedToken, Tokenizer

from control_plane.errors import PartitionError
from control_plane.files import regular_size
from control_plane.partition.checkpoint.untrusted import loading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STORED_TOKENIZER = "stored_tokenizer.json"
"""The file of a partition that `ModelTokenizer.json` writes."""
MAX_STORED_NBYTES = 256 << 20
DEFAULT_TEMPLATE = "default"


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of the file."""

    tokenizer: msgspec.Raw
    """The tokenizer, as the library writes it."""
    eos_token_id: int | None
    special_tokens: Mapping[str, str]
    chat_templates: Mapping[str, str]
    split_special_tokens: bool


@dataclass(frozen=True)
class ModelTokenizer:
    """A model's vocabulary and chat templates."""

    backend: Tokenizer
    eos_token_id: int | None
    """The end token, if the tokenizer has one."""
    special_tokens: Mapping[str, str]
    """The variables with special tokens that templates use, such as `bos_token`."""
    chat_templates: Mapping[str, str]
    """By name; a single one is named "default"."""
    split_special_tokens: bool
    """Whether a special token's name in a text is text."""

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> Self:
        """What transformers has made of a checkpoint's files."""
        read: Any = tokenizer
        templates = read.chat_template or {}
        return cls(
            backend=read.backend_tokenizer,
            eos_token_id=read.eos_token_id,
            special_tokens=dict(read.special_tokens_map),
            chat_templates={DEFAULT_TEMPLATE: templates} if isinstance(templates, str) else dict(templates),
            split_special_tokens=bool(read.split_special_tokens),
        )

    @classmethod
    def load(cls, partition: Path) -> Self:
        """The tokenizer of a partition. Raises `PartitionError`, also for the library's panics."""
        path = partition / STORED_TOKENIZER
        if not path.exists():
            raise PartitionError(f"{partition} has no tokenizer: the checkpoint had none")
        if regular_size(path) > MAX_STORED_NBYTES:
            raise PartitionError(f"{path} has more than {MAX_STORED_NBYTES} bytes")
        with loading(str(path)):
            stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
            backend = Tokenizer.from_str(bytes(stored.tokenizer).decode())
        return cls(
            backend,
            stored.eos_token_id,
            stored.special_tokens,
            stored.chat_templates,
            stored.split_special_tokens,
        )

    def json(self) -> bytes:
        """The content of the partition's file."""
        return msgspec.json.encode(
            _Stored(
                msgspec.Raw(self.backend.to_str().encode()),
                self.eos_token_id,
                self.special_tokens,
                self.chat_templates,
                self.split_special_tokens,
            )
        )

    def vocabulary(self) -> Mapping[str, int]:
        """The ids of all tokens by their names, the added ones among them."""
        return self.backend.get_vocab(with_added_tokens=True)

    @cached_property
    def added_tokens(self) -> Mapping[int, AddedToken]:
        """The tokens that were added to the vocabulary, special ones and others, by their ids."""
        return self.backend.get_added_tokens_decoder()

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of tokens. Raises whatever the library does."""
        return self.backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

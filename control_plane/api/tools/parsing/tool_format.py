"""How a family of models writes tool calls."""

import secrets
import string
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from control_plane.api.tools.parsing.grammar import Token
from control_plane.api.tools.parsing.source import Parse, Source
from control_plane.api.tools.parsing.writer import CallWriter

Tools = Sequence[Mapping[str, Any]]
"""Functions: each has a `name`, and perhaps `parameters`, a JSON schema."""
_ID_CHARACTERS = string.ascii_letters + string.digits


class ToolFormat(ABC):
    """The form of a family's tool calls. It keeps nothing about an answer."""

    marks: tuple[str, ...]
    """What calls begin with."""
    tokens: tuple[str, ...]
    """All marks that may be tokens of their own."""
    only_first: bool = False
    """Whether an answer has calls only where it begins."""

    def new_id(self) -> str:
        """A new id for a call, in the form of OpenAI's."""
        return f"call_{random_id(24)}"

    @abstractmethod
    def read(self, source: Source, calls: CallWriter, tools: Tools) -> Parse[None]:
        """Read from a mark to the end of its calls. Raises `NotACall`."""

    @abstractmethod
    def grammar(self, tools: Tools, token: Token, several: bool) -> str:
        """Rules in Lark's form, of which `calls` matches one call of any of the tools, or `several`."""


def random_id(length: int) -> str:
    """Random letters and digits."""
    return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(length))

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
"""Functions: each has a `name`, and may have `parameters`, a JSON schema."""
_ID_CHARACTERS = string.ascii_letters + string.digits


class ToolFormat(ABC):
    """The format of a family's tool calls. It holds no state of an answer."""

    name: str
    """What the log calls it."""
    marks: tuple[str, ...]
    """The texts that calls begin with."""
    tokens: tuple[str, ...]
    """All marks that may be single tokens."""
    only_first: bool = False
    """Whether calls count only at the beginning of an answer."""

    def new_id(self) -> str:
        """A new id for a call, in OpenAI's form."""
        return f"call_{random_id(24)}"

    @abstractmethod
    def read(self, source: Source, calls: CallWriter, tools: Tools) -> Parse[None]:
        """Read the calls that begin with a mark, which comes next. Raises `NotACall`."""

    @abstractmethod
    def grammar(self, tools: Tools, token: Token, several: bool) -> str:
        """Lark rules. The rule `calls` matches one call of any of the tools, or several with `several`."""

    def grammar_beside_json(self, tools: Tools, token: Token, several: bool) -> str:
        """The same, for a grammar that also has `json_value` as an alternative to `calls`."""
        return self.grammar(tools, token, several)


def random_id(length: int) -> str:
    """Random letters and digits."""
    return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(length))

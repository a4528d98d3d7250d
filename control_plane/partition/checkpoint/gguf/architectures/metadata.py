"""The keys of a GGUF file's metadata, checked when they are read."""

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from control_plane.errors import PartitionError

_LARGEST = 1 << 32


@dataclass(frozen=True)
class Metadata:
    """The metadata of a file. Keys of the model are without the name of its architecture."""

    path: Path
    entries: Mapping[str, Any]
    read: set[str] = field(default_factory=set)
    """The keys of the model that were asked for."""

    @property
    def architecture(self) -> str:
        return self.text("general.architecture") or ""

    def text(self, key: str) -> str | None:
        """A string; None without it. Raises PartitionError for another type."""
        value = self.entries.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def has(self, key: str) -> bool:
        """Whether there is a key of the model."""
        self.read.add(key)
        return self._key(key) in self.entries

    def number(self, key: str, default: int | None = None) -> int:
        """A key of the model that is a whole number, or that of all layers in which it is not 0.

        Raises PartitionError for another value, and if there is neither a value nor a default.
        """
        found = self._found(key, default)
        values: list[int] = found.tolist() if isinstance(found, np.ndarray) else [found]
        if not values or not all(type(value) is int and 0 <= value < _LARGEST for value in values):
            raise self._wrong(self._key(key), found, "a whole number")
        if len({value for value in values if value}) > 1:
            raise self._wrong(self._key(key), values, "the same in all layers")
        return max(values)

    def fraction(self, key: str, default: float | None = None) -> float:
        """A key of the model that is a number. Raises PartitionError like `number`."""
        value = self._found(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self._wrong(self._key(key), value, "a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """A key of the model that is true or false. Raises PartitionError for another value."""
        value = self._found(key, default)
        if type(value) is not bool:
            raise self._wrong(self._key(key), value, "true or false")
        return value

    def by_layer(self, key: str, layers: int) -> Sequence[int]:
        """A key of the model that is a whole number for each layer, or one for all. Raises PartitionError."""
        found = self._found(key, None)
        if isinstance(found, np.ndarray) and len(found) >= layers and found.dtype.kind in "iu":
            return [int(value) for value in found[:layers]]
        return [self.number(key)] * layers

    def flags(self, key: str, layers: int) -> Sequence[bool]:
        """A key of the model that is true or false for each layer. Raises PartitionError."""
        found = self._found(key, None)
        if isinstance(found, np.ndarray) and len(found) >= layers and found.dtype.kind == "b":
            return [bool(value) for value in found[:layers]]
        raise self._wrong(self._key(key), found, "true or false for each layer")

    def check(self, key: str, *values: object) -> None:
        """Raises PartitionError for a key of the model that has none of these values."""
        found = self.entries.get(self._key(key))
        if found is not None and (isinstance(found, np.ndarray) or found not in values):
            wanted = f"{values[0]}, as the architecture has it" if values else "known for the architecture"
            raise self._wrong(self._key(key), found, wanted)

    def token(self, name: str) -> int | None:
        """The id of a special token, such as "bos"; None without it. Raises PartitionError."""
        key = f"tokenizer.ggml.{name}_token_id"
        value = self.entries.get(key)
        if value is not None and (type(value) is not int or not 0 <= value < _LARGEST):
            raise self._wrong(key, value, "a token's id")
        return value

    def _key(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def _found(self, key: str, default: Any) -> Any:
        self.read.add(key)
        value = self.entries.get(self._key(key), default)
        if value is None:
            raise PartitionError(f"{self.path}: the metadata has no {self._key(key)}")
        return value

    def _wrong(self, key: str, value: object, wanted: str) -> PartitionError:
        return PartitionError(f"{self.path}: the metadata's {key} is {reprlib.repr(value)}, not {wanted}")

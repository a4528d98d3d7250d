"""Recipes: which type each kind of weight matrix is stored in, by the names that users type.

A quantised checkpoint has types of its own, which "auto" keeps: as many bits as the file has, and its codes
where a type holds them without loss.

Few bits do not serve all matrices alike. What a matrix writes back into the hidden states of every token, and
what decides the next token, keeps more of them.
"""

from typing import NamedTuple

from msgspec import Struct

from control_plane.errors import ConfigError


class ExpertTypes(NamedTuple):
    """The types of an expert's matrices, by name (`functions.kernels.packed_types`)."""

    gate_up: str
    down: str


class DenseTypes(Struct, frozen=True, forbid_unknown_fields=True):
    """The types of the dense part's large matrices, by name."""

    attention: str
    gate_up: str
    """Of shared experts, and of layers without experts."""
    down: str
    """Likewise."""
    head: str


class WeightTypes(NamedTuple):
    """The types of all weights of a partition."""

    dtype: str
    """"f32" or "bf16": of the activations, and of weights that are not packed."""
    experts: ExpertTypes
    dense: DenseTypes


class StoredTypes(NamedTuple):
    """The types that are nearest to those of a quantised checkpoint's matrices; None for plain ones."""

    experts: tuple[str | None, str | None] = (None, None)
    """In the order of `ExpertTypes`."""
    dense: tuple[str | None, str | None, str | None, str | None] = (None, None, None, None)
    """In the order of `DenseTypes`."""


PLAIN = StoredTypes()

_EXPERTS = {"int8": ExpertTypes("int8", "int8"), "int4": ExpertTypes("int4_min", "int4_min")}
_DENSE = {
    "int8": DenseTypes("int8", "int8", "int8", "int8"),
    "int4": DenseTypes(attention="int4_min", gate_up="int4_min", down="int8", head="int8"),
}
DTYPES = ("auto", "f32", "bf16", *_EXPERTS)
DENSE_DTYPES = ("auto", *_DENSE)


def choose_types(dtype: str, dense_dtype: str, source: str, stored: StoredTypes = PLAIN) -> WeightTypes:
    """The types that the options choose for a checkpoint in `source`, "f32" or "bf16".

    Raises ConfigError for an option that is none.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if dense_dtype not in DENSE_DTYPES:
        raise ConfigError(f"dense dtype must be one of {', '.join(DENSE_DTYPES)}, not {dense_dtype!r}")
    if dtype in ("f32", "bf16"):
        # These convert all weights.
        source, stored = dtype, PLAIN
    return WeightTypes(
        source,
        _EXPERTS.get(dtype, ExpertTypes(*(each or source for each in stored.experts))),
        _DENSE.get(dense_dtype, DenseTypes(*(each or source for each in stored.dense))),
    )

"""Random JSON schemas whose answers are bounded in length."""

from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

Schema = dict[str, Any]

NAMES = st.text("abcdexyz_-é ", min_size=1, max_size=6)
_VALUES = st.one_of(st.none(), st.booleans(), st.integers(-99, 99), st.text(max_size=4))


def _bounds(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    """Two numbers in ascending order."""
    numbers = st.lists(st.integers(low, high), min_size=2, max_size=2)
    return numbers.map(sorted).map(lambda pair: (pair[0], pair[1]))


_LEAVES: st.SearchStrategy[Schema] = st.one_of(
    st.sampled_from(
        [
            {"type": "null"},
            {"type": ["boolean", "null"]},
            {"type": "string", "format": "date"},
            {"type": "string", "pattern": "^[a-c]{2,5}$"},
            {"type": "string", "pattern": "^(x|yz)?-[0-9]{1,3}$"},
            {"type": "integer", "minimum": 0, "maximum": 70, "multipleOf": 7},
        ]
    ),
    _bounds(-5000, 5000).map(lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[1]}),
    _bounds(0, 8).map(lambda pair: {"type": "string", "minLength": pair[0], "maxLength": pair[1]}),
    _VALUES.map(lambda value: {"const": value}),
    st.lists(_VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values}),
)


@st.composite
def _objects(draw: st.DrawFn, inner: st.SearchStrategy[Schema]) -> Schema:
    properties = draw(st.dictionaries(NAMES, inner, max_size=4))
    required = [name for name in properties if draw(st.booleans())]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


@st.composite
def _arrays(draw: st.DrawFn, inner: st.SearchStrategy[Schema]) -> Schema:
    least, most = draw(_bounds(0, 3))
    return {"type": "array", "items": draw(inner), "minItems": least, "maxItems": most}


def _alternatives(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.lists(inner, min_size=1, max_size=3).map(lambda several: {"anyOf": several})


def _with_definitions(whole: Schema, part: Schema) -> Schema:
    """An array of `whole` and twice `part`, by references."""
    reference = {"$ref": "#/$defs/part"}
    return {
        "$defs": {"part": part, "again": reference},
        "type": "array",
        "prefixItems": [whole, reference, {"$ref": "#/$defs/again"}],
        "items": False,
        "minItems": 2,
    }


_PARTS = st.recursive(
    _LEAVES, lambda inner: st.one_of(_objects(inner), _arrays(inner), _alternatives(inner)), max_leaves=8
)
SCHEMAS: st.SearchStrategy[Schema] = st.one_of(_PARTS, st.builds(_with_definitions, _PARTS, _LEAVES))
"""Objects, arrays, alternatives and references of bounded values."""


def drawn(count: int) -> list[Schema]:
    """Some of them, the same ones each time.

    Drawn before a server starts: Hypothesis forbids other threads to use `random` meanwhile.
    """
    schemas: list[Schema] = []

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(SCHEMAS)
    def collect(schema: Schema) -> None:
        schemas.append(schema)

    collect()
    return schemas

"""Validation of data from outside: valid data is returned, and errors name the field and the problem."""

from typing import Annotated, Literal

import pytest
from msgspec import Meta, Struct

from control_plane.validation import Invalid, convert


class Part(Struct):
    kind: Literal["a"]


OnePart = Annotated[Part, Meta(description="an object")]


class Cat(Struct, tag="cat", tag_field="is"):
    lives: int


class Dog(Struct, tag="dog", tag_field="is"):
    bones: list[OnePart]


class Inner(Struct, forbid_unknown_fields=True):
    count: Annotated[int, Meta(ge=1, le=20, description="a whole number from 1 to 20")] | None = None
    plain: Annotated[int, Meta(ge=1)] = 1
    names: Annotated[list[str], Meta(min_length=1)] | None = None
    either: str | list[int] = ""
    flag: bool = False
    mode: Literal["a", "b"] = "a"
    parts: Annotated[str | list[OnePart], Meta(description="a text or parts")] = ""
    pets: list[Cat | Dog] = []
    by_layer: dict[int, list[int]] = {}

    def __post_init__(self) -> None:
        if self.either == "bad":
            raise ValueError("either: is bad")


class Outer(Struct, forbid_unknown_fields=True):
    number: float
    inner: Inner | None = None


def test_valid_data_is_returned() -> None:
    outer = convert({"number": 1, "inner": {"count": 3, "by_layer": {"1": [2]}}}, Outer)
    assert outer == Outer(1.0, Inner(count=3, by_layer={1: [2]}))


@pytest.mark.parametrize(
    ("data", "path", "problem"),
    [
        (5, "", "must be an object"),
        ({}, "number", "is missing"),
        ({"number": "1"}, "number", "must be a number"),
        ({"number": True}, "number", "must be a number"),
        ({"number": 1, "other": 2}, "other", "is not a known field"),
        ({"number": 1, "inner": {"other": 2}}, "inner.other", "is not a known field"),
        ({"number": 1, "inner": {"count": 0}}, "inner.count", "must be a whole number from 1 to 20"),
        ({"number": 1, "inner": {"count": "x"}}, "inner.count", "must be a whole number from 1 to 20"),
        ({"number": 1, "inner": {"plain": 0}}, "inner.plain", "must be a whole number of at least 1"),
        ({"number": 1, "inner": {"names": []}}, "inner.names", "must be a list of length at least 1"),
        ({"number": 1, "inner": {"names": ["a", 1]}}, "inner.names[1]", "must be a string"),
        ({"number": 1, "inner": {"either": 1}}, "inner.either", "must be a string or a list"),
        ({"number": 1, "inner": {"flag": 0}}, "inner.flag", "must be true or false"),
        ({"number": 1, "inner": {"mode": "c"}}, "inner.mode", "'c' is not supported, only 'a', 'b'"),
        ({"number": 1, "inner": {"by_layer": {"x": []}}}, "inner.by_layer", "must be a whole number"),
        ({"number": 1, "inner": {"parts": ["a"]}}, "inner.parts[0]", "must be an object"),
        ({"number": 1, "inner": {"parts": 1}}, "inner.parts", "must be a text or parts"),
        (
            {"number": 1, "inner": {"parts": [{"kind": "b"}]}},
            "inner.parts[0].kind",
            "'b' is not supported, only 'a'",
        ),
        (
            {"number": 1, "inner": {"pets": [{"is": "cow"}]}},
            "inner.pets[0].is",
            "'cow' is not supported, only 'cat', 'dog'",
        ),
        (
            {"number": 1, "inner": {"pets": [{"is": "dog", "bones": [5]}]}},
            "inner.pets[0].bones[0]",
            "must be an object",
        ),
        ({"number": 1, "inner": {"mode": "\ud83d"}}, "", "is not Unicode: it has half of a surrogate pair"),
        ({"number": 1, "inner": {"either": "bad"}}, "inner", "either: is bad"),
    ],
)
def test_errors_name_the_field_and_the_problem(data: object, path: str, problem: str) -> None:
    with pytest.raises(Invalid) as caught:
        convert(data, Outer)
    assert (caught.value.path, caught.value.problem) == (path, problem)

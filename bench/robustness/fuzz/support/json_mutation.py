"""Mutations of JSON documents: values of other types, numbers at the edges, missing and unknown fields."""

import copy
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

from bench.robustness.fuzz.support.mutation import mutated

_RAW = {
    "@deep": "[" * 400 + "]" * 400,
    "@deeper": "[" * 20_000 + "]" * 20_000,
    "@objects": '{"a":' * 5000 + "1" + "}" * 5000,
    "@long number": "9" * 5000,
    "@large exponent": "1e99999",
    "@overflow": "-1e400",
}
"""JSON that `json.dumps` does not write, by the strings that stand for it."""

_LONG = "x" * 70_000

_ODD: Sequence[Any] = (
    *(None, True, False, [], {}, [[]], [None], {"": None}),
    *(
        0,
        -1,
        1,
        2,
        3,
        127,
        128,
        255,
        65536,
        2**31 - 1,
        2**31,
        2**53 + 1,
        2**63 - 1,
        2**63,
        2**64,
        10**30,
        -(2**63) - 1,
    ),
    *(0.5, -0.0, 1.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        "0",
        "-1",
        "1e3",
        "x",
        "\0",
        "\ud800",
        "a\udfffb",
        "é😀",
        "../../x",
        "/dev/zero",
        "a/b",
        "F32",
        "\n",
    ),
)
_SELDOM: Sequence[Any] = (*_RAW, _LONG, [0] * 3000, [[]] * 3000, {str(key): key for key in range(2000)})


def mutated_json(document: Any, random: Random) -> bytes:
    """The document as JSON text, with one to three changed places; sometimes the text is mutated as well."""
    # A list around it, so that the document itself is a place, too.
    holder = [copy.deepcopy(document)]
    for _ in range(random.choice((1, 1, 2, 3))):
        places = list(_places(holder))
        if places:
            random.choice(_CHANGES)(*random.choice(places), random)
    text = _encoded(holder[0] if holder else None, random)
    return mutated(text, random) if random.random() < 0.1 else text


def mutated_message(message: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """A safetensors message or file whose header, data or any bytes are mutated."""
    (length,) = struct.unpack_from("<Q", message)
    header, data = message[8 : 8 + length], message[8 + length :]
    kind = random.random()
    if kind < 0.5:
        header = mutated_json(json.loads(header), random)
    elif kind < 0.8:
        data = mutated(data, random)
    else:
        return mutated(message, random, others)
    return struct.pack("<Q", len(header)) + header + data


def _encoded(document: Any, random: Random) -> bytes:
    text = json.dumps(document, ensure_ascii=random.random() < 0.5)
    for name, raw in _RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode("utf-8", "surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container in the value with each of its keys or indices."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def _replace(container: Any, key: Any, random: Random) -> None:
    container[key] = copy.deepcopy(random.choice(_SELDOM if random.random() < 0.05 else _ODD))


def _remove(container: Any, key: Any, random: Random) -> None:
    del container[key]


def _nudge(container: Any, key: Any, random: Random) -> None:
    """Change a number or a text a little; replace any other value."""
    value = container[key]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        container[key] = random.choice(
            (value + 1, value - 1, -value, value * 2, value * 1000, float(value), str(value))
        )
    elif isinstance(value, str):
        container[key] = mutated(value.encode("utf-8", "surrogatepass"), random).decode("latin-1")
    else:
        _replace(container, key, random)


def _wrap(container: Any, key: Any, random: Random) -> None:
    container[key] = random.choice(([container[key]], [container[key]] * 2, {"value": container[key]}))


def _add(container: Any, key: Any, random: Random) -> None:
    """Add a field or an element: an odd value, or a copy of the one that is there."""
    value = random.choice((random.choice(_ODD), container[key]))
    if isinstance(container, dict):
        container[random.choice(("unknown", "", "\ud800", "-1", "99999999999999999999", str(key) + "x"))] = (
            value
        )
    else:
        container.insert(random.randint(0, len(container)), value)


def _swap(container: Any, key: Any, random: Random) -> None:
    """Exchange two values of a container."""
    other = random.choice(list(container) if isinstance(container, dict) else range(len(container)))
    container[key], container[other] = container[other], container[key]


_CHANGES: Sequence[Callable[[Any, Any, Random], None]] = (
    _replace,
    _replace,
    _nudge,
    _nudge,
    _remove,
    _wrap,
    _add,
    _swap,
)

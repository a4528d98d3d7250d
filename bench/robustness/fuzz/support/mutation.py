"""Mutations of bytes."""

import struct
from collections.abc import Callable, Sequence
from random import Random

LONGEST = 1 << 20
"""Mutations make no input longer than this."""

_EDGES = (
    0,
    1,
    -1,
    127,
    128,
    255,
    32767,
    32768,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
_FORMATS = ("B", "<H", "<I", "<Q")

Mutation = Callable[[bytearray, Random], None]


def mutated(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """`data` with one to four mutations; parts of `others` may be put into it."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        if others and random.random() < 0.1:
            _splice(changed, random, random.choice(others))
        else:
            random.choice(_MUTATIONS)(changed, random)
    return bytes(changed[:LONGEST])


def _place(data: bytearray, random: Random) -> int:
    return random.randint(0, len(data))


def _part(data: bytes | bytearray, random: Random) -> slice:
    """A part of the data, more often a short one than a long one."""
    start = random.randint(0, len(data))
    return slice(start, start + int(len(data) ** random.random()))


def _flip_bit(data: bytearray, random: Random) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _change_byte(data: bytearray, random: Random) -> None:
    if data:
        data[random.randrange(len(data))] = random.randrange(256)


def _truncate(data: bytearray, random: Random) -> None:
    del data[_place(data, random) :]


def _remove(data: bytearray, random: Random) -> None:
    del data[_part(data, random)]


def _repeat(data: bytearray, random: Random) -> None:
    part = data[_part(data, random)]
    times = random.choice((1, 1, 2, 100, 3000))
    place = _place(data, random)
    data[place:place] = part * min(times, max(1, 65536 // max(1, len(part))))


def _insert(data: bytearray, random: Random) -> None:
    place = _place(data, random)
    data[place:place] = random.randbytes(random.choice((1, 2, 8, 64)))


def _write_edge(data: bytearray, random: Random) -> None:
    """Overwrite some bytes with a number at the edge of a type's range."""
    layout = random.choice(_FORMATS)
    size = struct.calcsize(layout)
    place = _place(data, random)
    data[place : place + size] = struct.pack(layout, random.choice(_EDGES) % (1 << 8 * size))


def _splice(data: bytearray, random: Random, other: bytes) -> None:
    data[_part(data, random)] = other[_part(other, random)]


_MUTATIONS: Sequence[Mutation] = (
    _flip_bit,
    _flip_bit,
    _change_byte,
    _truncate,
    _remove,
    _repeat,
    _insert,
    _write_edge,
)

"""What is fuzzed: one reader of data from outside, with the inputs that it gets."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random


@dataclass(frozen=True)
class Target:
    """A reader of data from outside."""

    make: Callable[[Random], bytes]
    """Makes an input from a random generator: a mutation of a valid one."""
    run: Callable[[bytes], bool]
    """Hands over an input. Returns whether it was accepted (True), or refused as such inputs should be
    (False); any exception is a finding."""


class Misbehaviour(Exception):
    """The reader raised nothing, but did what it must not do, such as answering with status 500."""


OpenTarget = Callable[[Path], AbstractContextManager[Target]]
"""Opens a target, given the folder that `model.write` wrote. What it started ends with the context."""

"""Several values in one option of a command line."""

from collections.abc import Callable
from typing import Any

import click

from control_plane.errors import FaaSMoEError


class Listed(click.ParamType):
    """Several values, with commas between them."""

    name = "LIST"

    def __init__(self, read: Callable[[str], Any]) -> None:
        """`read` makes one value of its text, or raises `FaaSMoEError` or ValueError."""
        self._read = read

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        if not isinstance(value, str):
            return value
        try:
            return tuple(self._read(item) for item in value.split(","))
        except (FaaSMoEError, ValueError) as error:
            self.fail(str(error), param, ctx)

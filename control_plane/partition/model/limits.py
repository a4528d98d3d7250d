"""Bounds of a model's numbers, which come from files that anybody may have written."""

from typing import Annotated

from msgspec import Meta

MAX_LAYERS = 10_000
MAX_WIDTH = 1 << 20
"""The largest hidden size, and the largest width of an expert."""

Size = Annotated[int, Meta(ge=1, le=MAX_WIDTH)]

"""Turns what libraries raise for a checkpoint's files into one line for the user."""

from collections.abc import Iterator
from contextlib import contextmanager

from control_plane.errors import FaaSMoEError, PartitionError

_MAX_ERROR = 300


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn any error of the block into a `PartitionError`: files that a library does not expect raise any."""
    try:
        yield
    except (FaaSMoEError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # A tokenizer's panics are not Exceptions.
        problem = f"{type(error).__name__}: {_in_one_line(error)[:_MAX_ERROR]}"
        raise PartitionError(f"cannot load {what}: {problem}") from error


def _in_one_line(error: BaseException) -> str:
    """The error's message without line breaks: transformers' messages can be paragraphs."""
    return " ".join(str(error).split())

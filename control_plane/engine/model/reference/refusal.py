"""Errors of transformers, as ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from control_plane.errors import FaaSMoEError, PartitionError

_MAX_ERROR = 300


@contextmanager
def refused_by_transformers(what: str) -> Iterator[None]:
    """Turn an error of transformers into a `PartitionError`: files that it does not expect can raise any."""
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

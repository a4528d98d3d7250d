"""What may go wrong with one thing that is measured, while the others go on."""

from collections.abc import Iterator

import aiohttp

from control_plane.errors import FaaSMoEError

FAILURES = (FaaSMoEError, aiohttp.ClientError, TimeoutError, ValueError, OSError)


def reasons(failed: BaseExceptionGroup) -> str:
    """In one line, each once."""
    return "; ".join(dict.fromkeys(_reasons(failed)))


def _reasons(failed: BaseExceptionGroup) -> Iterator[str]:
    for error in failed.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _reasons(error)
        else:
            yield " ".join(str(error).split()) or type(error).__name__

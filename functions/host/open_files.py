"""How many files and connections this process may have open."""

import resource


def raise_open_files(number: int) -> int:
    """Raise the limit of open files towards `number`, as far as that is allowed; returns the limit then."""
    soft, hard = (number if limit == resource.RLIM_INFINITY else limit for limit in _limits())
    if soft < number and soft < hard:
        soft = min(number, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, _limits()[1]))
    return soft


def need_open_files(number: int) -> None:
    """Raise the limit of open files to `number`, if it is lower. Raises `ValueError` if it stays lower."""
    if (limit := raise_open_files(number)) < number:
        raise ValueError(f"needs {number} open files, and the limit is {limit} (see `ulimit -Hn`)")


def _limits() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_NOFILE)

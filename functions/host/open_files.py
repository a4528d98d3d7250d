"""How many files and connections this process may have open."""

import resource


def need_open_files(number: int) -> None:
    """Raise the limit of open files to `number`, if it is lower. Raises `ValueError` where that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= number:
        return
    if hard != resource.RLIM_INFINITY and hard < number:
        raise ValueError(f"needs {number} open files, and the limit is {hard} (see `ulimit -Hn`)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))

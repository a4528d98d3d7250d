"""The limit of open files is raised as far as it may be, and too low a limit is a clear error."""

import resource
import subprocess
import sys

import pytest

NEED = """
import resource, sys
from functions.host.open_files import need_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
try:
    need_open_files(100)
except ValueError as error:
    print(error)
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "raised"), [(50, 200, 100), (50, 100, 100), (100, 100, 100), (150, 200, 150)]
)
def test_the_limit_is_raised_to_what_is_needed(soft: int, hard: int, raised: int) -> None:
    assert need(soft, hard) == [f"{raised} {hard}"]


def test_too_low_a_limit_is_an_error() -> None:
    problem, limits = need(50, 99)
    assert problem == "needs 100 open files, and the limit is 99 (see `ulimit -Hn`)"
    assert limits == "99 99"


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[1] != resource.RLIM_INFINITY, reason="not allowed here"
)
@pytest.mark.parametrize(("soft", "raised"), [(-1, -1), (50, 100)])
def test_there_may_be_no_limit(soft: int, raised: int) -> None:
    assert need(soft, -1) == [f"{raised} -1"]


def need(soft: int, hard: int) -> list[str]:
    """Need 100 open files with these limits; returns the error, if there is one, and the limits then."""
    command = [sys.executable, "-c", NEED, str(soft), str(hard)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

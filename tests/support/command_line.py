"""The `faasmoe` command inside a test: in this process, or as one of its own."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner, Result

from control_plane.cli.main import main

WAIT_SECONDS = 60


def faasmoe(*arguments: object, stdin: bytes | None = None) -> Result:
    """Run a command that ends by itself."""
    return CliRunner().invoke(main, [str(a) for a in arguments], input=stdin)


def error_line(result: Result) -> str:
    """What a command that failed has told: one line, after which it exited with 1."""
    # Anything else is what a traceback would have been printed for.
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


def usage_error(result: Result) -> str:
    """What a command that was called in a wrong way has told, after which it exited with 2."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")
    return result.stderr.splitlines()[-1].removeprefix("Error: ")


@dataclass(frozen=True)
class RunningCommand:
    """A command that serves until it is ended."""

    process: subprocess.Popen[str]

    def wait_for(self, pattern: str) -> str:
        """Read its output up to a line that matches; returns the match's first group, or all of it."""
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:
            seen.append(line)
            if match := re.search(pattern, line):
                return match[match.lastindex or 0]
        raise AssertionError(f"it ended without {pattern!r}: {''.join(seen)}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal, and wait until it has exited; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(WAIT_SECONDS)


@contextmanager
def running_command(*arguments: object, temporary: Path) -> Iterator[RunningCommand]:
    """Start `faasmoe`, whose temporary files go to a folder; it is ended after the test, if not by it."""
    with subprocess.Popen(
        [sys.executable, "-m", "control_plane", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as process:
        try:
            command = RunningCommand(process)
            yield command
            command.end()
        finally:
            process.kill()

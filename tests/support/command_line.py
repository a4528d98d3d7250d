"""Runs the `faasmoe` command in a test, in this process or in a new one."""

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
    """Run a command in this process, until it ends."""
    return CliRunner().invoke(main, [str(a) for a in arguments], input=stdin)


def error_line(result: Result) -> str:
    """The error of a command that printed one line, apart from its log, and exited with 1."""
    # Any other exception would have printed a traceback.
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith('{"level": "INFO"')]
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


def usage_error(result: Result) -> str:
    """The usage error of a command that exited with 2."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")
    return result.stderr.splitlines()[-1].removeprefix("Error: ")


@dataclass(frozen=True)
class RunningCommand:
    """A command in a process, which runs until it is stopped."""

    process: subprocess.Popen[str]

    def wait_for(self, pattern: str) -> str:
        """Read output until a line matches. Returns the match's last group, or the whole match."""
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:
            seen.append(line)
            if match := re.search(pattern, line):
                return match[match.lastindex or 0]
        raise AssertionError(f"it ended without {pattern!r}: {''.join(seen)}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait until the process exits, and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(WAIT_SECONDS)


@contextmanager
def running_command(*arguments: object, temporary: Path) -> Iterator[RunningCommand]:
    """Start `faasmoe` with a folder for its temporary files. Leaving the context stops it."""
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

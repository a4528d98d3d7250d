"""Progress of a comparison: the listener's interface, and a progress bar on standard error."""

import sys
from types import TracebackType
from typing import Any

import click
from tqdm import tqdm

from bench.comparison.measuring.replay import RequestOutcome


class ProgressListener:
    """Receives the progress of a comparison. This one ignores it."""

    def line(self, text: str) -> None:
        """Called with a message for the user."""

    def begin(self, title: str, requests: int) -> None:
        """Called when a strategy starts; it will answer `requests` requests."""

    def request(self, outcome: RequestOutcome) -> None:
        """Called when a request has ended."""

    def end(self, problem: str) -> None:
        """Called when a strategy has been measured; `problem` is empty if it succeeded."""


class Progress(ProgressListener):
    """Shows a progress bar on a terminal, and prints one line for each step elsewhere."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._title = ""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def line(self, text: str) -> None:
        click.echo(text, err=True)

    def begin(self, title: str, requests: int) -> None:
        self._title = title
        if sys.stderr.isatty():
            self._bar = tqdm(total=requests, desc=title, unit="request", leave=False)
        else:
            self.line(f"{title}: {requests} requests")

    def request(self, outcome: RequestOutcome) -> None:
        if self._bar is not None:
            self._bar.update()

    def end(self, problem: str) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self.line(f"{self._title}: {problem or 'measured'}")

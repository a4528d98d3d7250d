"""A progress bar for a person, or a line for each step where nobody watches."""

import sys
from types import TracebackType

import click
from tqdm import tqdm

from bench.comparison.comparison import ProgressListener
from bench.comparison.replay import RequestOutcome


class Progress(ProgressListener):
    """On standard error."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
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

"""The table of `make bench-peers`: tokens per second of FaaSMoE and of each peer, medians of the rounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench.memory_limit.faasmoe import LONG_PROMPT, SHORT_PROMPT
from bench.memory_limit.scenarios import NO_LIMIT, SEQUENCES_WITHOUT_LIMIT


@dataclass(frozen=True)
class Speed:
    """Tokens per second of all sequences together."""

    value: float
    share: float | None = None
    """The speed as a share of the maximum that the machine allows; None where that is unknown."""


Speeds = Mapping[str, Speed]
"""What one system reached in one round, by the rows of the table."""


def decode_row(sequences: int, limit: str = NO_LIMIT) -> str:
    """The row of decoding so many sequences at once, under a memory limit or without one."""
    within = "" if limit == NO_LIMIT else f" within {limit}"
    return f"decode{within}, {sequences} sequence{'s' if sequences > 1 else ''}"


def prefill_row(prompt_tokens: int) -> str:
    """The row of the prefill of one prompt."""
    return f"prefill of {prompt_tokens}"


def rows(limits: Sequence[str]) -> list[str]:
    """All rows for these memory limits, in their order."""
    named: list[str] = []
    for limit in limits:
        if limit == NO_LIMIT:
            named += [decode_row(sequences) for sequences in SEQUENCES_WITHOUT_LIMIT]
            named += [prefill_row(SHORT_PROMPT), prefill_row(LONG_PROMPT)]
        else:
            named.append(decode_row(1, limit))
    return named


@dataclass(frozen=True)
class Table:
    """The speeds of all rounds so far."""

    ours: str
    """The title of FaaSMoE's column."""
    peers: Sequence[str]
    """The titles of the peers' columns."""
    _speeds: dict[tuple[str, str], list[Speed]] = field(default_factory=dict)
    """Speeds by row and column."""

    def add(self, column: str, speeds: Speeds) -> None:
        """Add what one system reached in one round."""
        for row, speed in speeds.items():
            self._speeds.setdefault((row, column), []).append(speed)

    def markdown(self, named: Sequence[str]) -> str:
        """A table with these rows. Ratios are to the fastest peer; `-` means that nothing was measured."""
        header = ["tokens/s", self.ours, *self.peers, "x the best", "of what the machine allows"]
        lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        for row in named:
            ours, *theirs = (self._median(row, column) for column in (self.ours, *self.peers))
            best = max((speed for speed in theirs if speed is not None), default=None)
            cells = [
                row,
                *(_cell(speed, "{:.2f}" if speed and speed < 10 else "{:.1f}") for speed in (ours, *theirs)),
            ]
            cells.append(_cell(ours / best if ours and best else None, "{:.2f}"))
            cells.append(_cell(self._share(row), "{:.0%}"))
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def _median(self, row: str, column: str) -> float | None:
        speeds = self._speeds.get((row, column))
        return median(speed.value for speed in speeds) if speeds else None

    def _share(self, row: str) -> float | None:
        shares = [speed.share for speed in self._speeds.get((row, self.ours), ()) if speed.share is not None]
        return median(shares) if shares else None


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)

"""What the chaos test counts, and how it prints it. Which counts must be zero is decided here."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.robustness.chaos.streams import Attempt, Ending, Stall
from control_plane.formatting import table

MAX_EXAMPLES = 20
HEADER = (
    "fault",
    "times",
    "wrong tokens",
    "lost",
    "cut",
    "refused",
    "longest stall",
    "aim",
    "recovery",
    "processes left",
)


@dataclass
class FaultResult:
    """What the clients noticed of one kind of fault, over all times that it was injected."""

    name: str
    aim: float | None = None
    """The longest stall that is aimed at, in seconds."""
    times: int = 0
    wrong_tokens: int = 0
    lost: int = 0
    """Requests that ended with an error or without an answer, except those of a killed control plane."""
    cut: int = 0
    """Requests whose connection broke because the control plane was killed."""
    refused: int = 0
    stall: float = 0.0
    """Longest time for which a client waited for a token, in seconds."""
    recovery: float = 0.0
    """Longest time from the injection until all streams flowed as before, in seconds."""
    processes_left: int = 0
    failures: list[str] = field(default_factory=list)
    """One line for each time that it could not be injected, or that the streams did not recover."""

    def add(self, attempts: Sequence[Attempt], stalls: Sequence[Stall]) -> None:
        """Count the attempts that ended in the fault's time, and the stalls of that time."""
        endings = [attempt.ending for attempt in attempts]
        self.wrong_tokens += sum(attempt.wrong for attempt in attempts)
        self.lost += endings.count(Ending.LOST)
        self.cut += endings.count(Ending.CUT)
        self.refused += endings.count(Ending.REFUSED)
        self.stall = max([self.stall, *(stall.seconds for stall in stalls)])

    @property
    def held(self) -> bool:
        """Whether every count is zero that must be."""
        return not (self.wrong_tokens or self.lost or self.processes_left or self.failures)

    def row(self) -> list[str]:
        """Its row of the table."""
        return [
            self.name,
            str(self.times),
            str(self.wrong_tokens),
            str(self.lost),
            str(self.cut),
            str(self.refused),
            f"{self.stall:.1f} s",
            "" if self.aim is None else f"{self.aim:.0f} s",
            "never" if self.failures else f"{self.recovery:.1f} s",
            str(self.processes_left),
        ]


@dataclass(frozen=True)
class Account:
    """One tenant's requests, as its clients counted them and as they were booked."""

    tenant: str
    completed: int
    completed_tokens: int
    uncertain: int
    """Other requests that the server may have seen. It may book them, with the tokens that it generated."""
    answer_tokens: int
    """Tokens of each answer."""
    booked: int
    booked_tokens: int

    @classmethod
    def of(
        cls, tenant: str, attempts: Sequence[Attempt], usage: Mapping[str, Any], answer_tokens: int
    ) -> "Account":
        """Compare the attempts of a tenant with its usage in the database; an answer has `answer_tokens`."""
        own = [each for each in attempts if each.tenant == tenant]
        completed = [each for each in own if each.ending is Ending.COMPLETED]
        uncertain = sum(each.sent for each in own) - len(completed)
        return cls(
            tenant=tenant,
            completed=len(completed),
            completed_tokens=sum(each.tokens for each in completed),
            uncertain=uncertain,
            answer_tokens=answer_tokens,
            booked=usage.get("requests", 0),
            booked_tokens=usage.get("generated_tokens", 0),
        )

    @property
    def unbooked(self) -> int:
        """Requests that were answered in full and are not booked, at least.

        Booked requests without an answer can hide others that are missing, but they have fewer tokens.
        """
        missing_tokens = self.completed_tokens - self.booked_tokens
        return max(0, self.completed - self.booked, math.ceil(missing_tokens / self.answer_tokens))

    @property
    def overbooked(self) -> int:
        """Booked requests that no client has sent, at least."""
        sent = self.completed + self.uncertain
        surplus_tokens = self.booked_tokens - sent * self.answer_tokens
        return max(0, self.booked - sent, math.ceil(surplus_tokens / self.answer_tokens))

    @property
    def held(self) -> bool:
        """Whether the bookings can be right."""
        return not (self.unbooked or self.overbooked)

    def row(self) -> list[str]:
        """Its row of the table."""
        numbers = (
            self.completed,
            self.uncertain,
            self.booked,
            self.unbooked,
            self.overbooked,
            self.completed_tokens,
            self.booked_tokens,
        )
        return [self.tenant, *map(str, numbers)]


@dataclass
class ChaosResult:
    """The result of a run."""

    seconds: float
    seed: int
    faults: Sequence[FaultResult]
    """In the order of their first injection, and last the times without a fault."""
    accounts: Sequence[Account]
    processes_left: int
    """Processes that were still there after the stack had been stopped."""
    connections_left: int
    examples: Sequence[str]
    """What the first lost requests reported."""

    @property
    def held(self) -> bool:
        """Whether every count is zero that must be."""
        left = self.processes_left + self.connections_left
        held = (*(fault.held for fault in self.faults), *(account.held for account in self.accounts))
        return not left and all(held)

    def lines(self) -> Iterator[str]:
        """The tables for people."""
        yield from table(HEADER, [fault.row() for fault in self.faults])
        yield ""
        yield from table(
            (
                "tenant",
                "completed",
                "uncertain",
                "booked",
                "unbooked",
                "booked too often",
                "tokens",
                "booked tokens",
            ),
            [account.row() for account in self.accounts],
        )
        yield ""
        yield f"left at the end: {self.processes_left} processes, {self.connections_left} connections"
        for fault in self.faults:
            yield from (f"{fault.name}: {failure}" for failure in fault.failures)
        yield from (f"lost: {example}" for example in self.examples)
        yield f"{'HELD' if self.held else 'BROKEN'} in {self.seconds:.0f} s with seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """All counts, for `--output`."""
        return {**asdict(self), "held": self.held}


def examples(attempts: Sequence[Attempt]) -> list[str]:
    """The different problems of lost requests, the first ones."""
    return list(dict.fromkeys(each.problem for each in attempts if each.ending is Ending.LOST))[:MAX_EXAMPLES]

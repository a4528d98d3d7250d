"""Stores usage in a database, and remembers which entries were booked."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from control_plane.tenancy.periods import SECONDS_PER_DAY, day_of, month_of
from control_plane.tenancy.storage.database import Database
from control_plane.tenancy.usage import Booking, Entry, Spent, Usage

SECONDS_PER_MINUTE = 60
MICRO = 1_000_000
NANO = 1_000_000_000
WRITER_SECONDS = 366 * 24 * 3600
"""How long a server's last entry is remembered, so that it is not added again."""


class UsageStore:
    """The part of `TenantStore` that keeps usage, of tenants that exist and of those that are gone."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        """The clock gives Unix time, in seconds."""
        self.database = database
        self._clock = clock

    def book(self, entries: Sequence[Entry]) -> None:
        """Add entries to the tenants' usage, in one transaction, except those that were added before."""
        with self.database.transaction():
            for entry in entries:
                if (self._last_entry(entry.writer) or 0) < entry.number:
                    self._register(entry.writer, entry.number)
                    self._add(entry.bookings)

    def usage(self, tenant: str | None, since: float | None) -> Sequence[Usage]:
        """Usage of one tenant, or of each, since the minute of a Unix time, sorted by name.

        This includes removed tenants, and leaves out tenants without usage.
        """
        wanted: dict[str, Any] = {}
        if tenant is not None:
            wanted["tenant = ?"] = tenant
        if since is not None:
            wanted["minute >= ?"] = _minute(since)
        where = f"WHERE {' AND '.join(wanted)}" if wanted else ""
        rows = self.database.select(
            f"""SELECT tenant, sum(requests), sum(prompt_tokens), sum(generated_tokens),
            sum(expert_microinvocations), sum(expert_nanoseconds) FROM usage {where}
            GROUP BY tenant ORDER BY tenant""",
            tuple(wanted.values()),
        )
        return [
            Usage(name, int(requests), int(prompt), int(generated), int(micro) / MICRO, int(nano) / NANO)
            for name, requests, prompt, generated, micro, nano in rows
        ]

    def spent(self, tenant: str, now: float | None = None) -> Spent:
        """The tokens booked to a tenant in the day and month of a Unix time, by default the present one."""
        now = self._clock() if now is None else now
        today, (first, following) = day_of(now), month_of(now)
        ((day, month),) = self.database.select(
            """SELECT coalesce(sum(CASE WHEN day = ? THEN tokens END), 0), coalesce(sum(tokens), 0)
            FROM daily_tokens WHERE tenant = ? AND day >= ? AND day < ?""",
            (today, tenant, first, following),
        )
        ends = (today + 1) * SECONDS_PER_DAY - now, following * SECONDS_PER_DAY - now
        return Spent(int(day), int(month), *ends)

    def _last_entry(self, writer: str) -> int | None:
        """The number of the writer's last entry; None for a writer that is not known here."""
        rows = self.database.select("SELECT last FROM writers WHERE id = ?", (writer,))
        return int(rows[0][0]) if rows else None

    def _register(self, writer: str, last: int) -> None:
        now = int(self._clock())
        self.database.change(
            """INSERT INTO writers VALUES (?, ?, ?)
            ON CONFLICT (id) DO UPDATE SET last = excluded.last, at = excluded.at""",
            (writer, last, now),
        )
        self.database.change("DELETE FROM writers WHERE at < ?", (now - WRITER_SECONDS,))

    def _add(self, bookings: Sequence[Booking]) -> None:
        self.database.change(
            """INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, minute) DO UPDATE SET
            requests = usage.requests + excluded.requests,
            prompt_tokens = usage.prompt_tokens + excluded.prompt_tokens,
            generated_tokens = usage.generated_tokens + excluded.generated_tokens,
            expert_microinvocations =
                usage.expert_microinvocations + excluded.expert_microinvocations,
            expert_nanoseconds = usage.expert_nanoseconds + excluded.expert_nanoseconds""",
            *(_account(booking) for booking in bookings),
        )
        self.database.change(
            """INSERT INTO daily_tokens VALUES (?, ?, ?) ON CONFLICT (tenant, day) DO UPDATE SET
            tokens = daily_tokens.tokens + excluded.tokens""",
            *(
                (booking.tenant, day_of(booking.at), booking.prompt_tokens + booking.generated_tokens)
                for booking in bookings
            ),
        )


def _account(booking: Booking) -> tuple[Any, ...]:
    return (
        booking.tenant,
        _minute(booking.at),
        booking.requests,
        booking.prompt_tokens,
        booking.generated_tokens,
        round(booking.expert_invocations * MICRO),
        round(booking.expert_seconds * NANO),
    )


def _minute(at: float) -> int:
    return int(at // SECONDS_PER_MINUTE)

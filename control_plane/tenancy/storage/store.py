"""Tenants and their usage in a database.

The SQL is here, in migrations.py, and for the shared accounts in shared_limiter.py.
"""

import hmac
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from control_plane.errors import InvalidApiKey, TenancyError, UnknownTenant
from control_plane.tenancy.declared import DeclaredTenant
from control_plane.tenancy.keys import checked_key, hash_key, new_key
from control_plane.tenancy.storage.database import Database, Duplicate, open_database
from control_plane.tenancy.tenants import Limits, Tenant
from control_plane.tenancy.usage import Booking, Entry, Usage

SECONDS_PER_MINUTE = 60
MICRO = 1_000_000
NANO = 1_000_000_000
WRITER_SECONDS = 366 * 24 * 3600
"""How long a server's last entry is remembered, so that it is not added again."""

_TENANT = "name, weight, rpm, tpm, max_concurrency, max_context, max_output, operator, created"


class TenantStore:
    """One connection to the database, for use in the thread that has opened it.

    Nothing is cached, so every process sees a change at once. A committed write survives a crash of the
    process. Methods raise `TenancyError` if the database cannot be read or written.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    @contextmanager
    def open(cls, address: Path | str) -> Iterator["TenantStore"]:
        """Open the store in a file, which is created if it is missing, or at a PostgreSQL URL.

        Raises `ConfigError`: see `open_database`.
        """
        with open_database(address) as database:
            yield cls(database)

    def add(self, name: str, limits: Limits, operator: bool, key: str | None = None) -> str:
        """Add a tenant and return its key, which is stored only as a hash.

        Raises `TenancyError` if the name or the key is taken.
        """
        tenant = Tenant(name, limits, operator, time.time())
        key = new_key() if key is None else checked_key(key)
        with self.database.transaction():
            if self.database.select("SELECT 1 FROM tenants WHERE name = ?", (name,)):
                raise TenancyError(f"there is a tenant {name} already")
            self._insert(tenant, key)
        return key

    def get(self, name: str) -> Tenant:
        """Look up a tenant by name. Raises `UnknownTenant`."""
        for row in self.database.select(f"SELECT {_TENANT} FROM tenants WHERE name = ?", (name,)):
            return _tenant(row)
        raise UnknownTenant(_unknown(name))

    def update(self, name: str, limits: Limits, operator: bool) -> None:
        """Replace a tenant's limits, from the next request on. Raises `UnknownTenant`."""
        self._change(
            """UPDATE tenants SET weight = ?, rpm = ?, tpm = ?, max_concurrency = ?, max_context = ?,
            max_output = ?, operator = ? WHERE name = ?""",
            (*_columns(limits), int(operator), name),
            name,
        )

    def rotate_key(self, name: str) -> str:
        """Replace a tenant's key, and return the new one. Raises `UnknownTenant`."""
        key = new_key()
        self._change("UPDATE tenants SET key_hash = ? WHERE name = ?", (hash_key(key), name), name)
        return key

    def remove(self, name: str) -> None:
        """Remove a tenant and its key, but not its usage. Raises `UnknownTenant`."""
        self._change("DELETE FROM tenants WHERE name = ?", (name,), name)

    def authenticate(self, key: str) -> Tenant:
        """Look up a tenant by key. Raises `InvalidApiKey`."""
        hashed = hash_key(key)
        found_rows = self.database.select(
            f"SELECT key_hash, {_TENANT} FROM tenants WHERE key_hash = ?", (hashed,)
        )
        for found, *row in found_rows:
            if hmac.compare_digest(bytes(found), hashed):
                return _tenant(row)
        raise InvalidApiKey("there is no tenant with this API key")

    def declare(self, tenants: Sequence[DeclaredTenant], writer: str) -> None:
        """Add or update tenants from the config file of a server, and register the server as a writer.

        Other tenants, and keys that the file does not declare, stay. Does nothing in a database that has the
        writer already, so that changes made since then stay.
        """
        if self._last_entry(writer) is not None:
            return
        with self.database.transaction():
            self._register(writer, 0)
            for declared in tenants:
                self._insert(
                    Tenant(declared.name, declared.limits, declared.operator, time.time()), declared.key
                )

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

    def list(self) -> Sequence[Tenant]:
        """All tenants, sorted by name."""
        return [_tenant(row) for row in self.database.select(f"SELECT {_TENANT} FROM tenants ORDER BY name")]

    def _last_entry(self, writer: str) -> int | None:
        """The number of the writer's last entry; None for a writer that is not known here."""
        rows = self.database.select("SELECT last FROM writers WHERE id = ?", (writer,))
        return int(rows[0][0]) if rows else None

    def _register(self, writer: str, last: int) -> None:
        now = int(time.time())
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

    def _insert(self, tenant: Tenant, key: str | None) -> None:
        """Insert a tenant or update it. Without a key, an existing tenant keeps its own."""
        try:
            self.database.change(
                f"""INSERT INTO tenants ({_TENANT}, key_hash)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET
                weight = excluded.weight, rpm = excluded.rpm, tpm = excluded.tpm,
                max_concurrency = excluded.max_concurrency, max_context = excluded.max_context,
                max_output = excluded.max_output, operator = excluded.operator,
                key_hash = coalesce(excluded.key_hash, tenants.key_hash)""",
                (
                    tenant.name,
                    *_columns(tenant.limits),
                    int(tenant.operator),
                    tenant.created,
                    None if key is None else hash_key(key),
                ),
            )
        except Duplicate as error:
            raise TenancyError(f"tenant {tenant.name}: its key belongs to another tenant") from error

    def _change(self, statement: str, values: tuple[Any, ...], name: str) -> None:
        with self.database.transaction():
            if self.database.change(statement, values) == 0:
                raise UnknownTenant(_unknown(name))


def _columns(limits: Limits) -> tuple[Any, ...]:
    return (
        limits.weight,
        limits.rpm,
        limits.tpm,
        limits.max_concurrency,
        limits.max_context,
        limits.max_output,
    )


def _tenant(row: Sequence[Any]) -> Tenant:
    name, *limits, operator, created = row
    return Tenant(name, Limits(*limits), bool(operator), created)


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


def _unknown(name: str) -> str:
    return f"there is no tenant {name[:80]!r}"

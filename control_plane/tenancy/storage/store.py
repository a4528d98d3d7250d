"""Tenants and their usage, in a database: all of the SQL is here and in migrations.py."""

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
from control_plane.tenancy.usage import Booking, Usage

SECONDS_PER_MINUTE = 60
MICRO = 1_000_000
NANO = 1_000_000_000

_TENANT = "name, weight, rpm, tpm, max_concurrency, max_context, max_output, operator, created"


class TenantStore:
    """One connection to the database, for the thread that has opened it; other processes may have theirs.

    Nothing is cached: what one changes, all see at once. A committed write survives the end of the process,
    however it ends. Methods raise `TenancyError` when the database cannot be read or written.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    @contextmanager
    def open(cls, address: Path | str) -> Iterator["TenantStore"]:
        """The store in a file, which is made where there is none, for its owner only; or at PostgreSQL's URL.

        Raises `ConfigError` for what is no such database, or a newer one, or cannot be written or reached.
        """
        with open_database(address) as database:
            yield cls(database)

    def add(self, name: str, limits: Limits, operator: bool, key: str | None = None) -> str:
        """A new tenant; returns its key, which cannot be read again. Raises `TenancyError` if it exists."""
        tenant = Tenant(name, limits, operator, time.time())
        key = new_key() if key is None else checked_key(key)
        with self.database.transaction():
            if self.database.select("SELECT 1 FROM tenants WHERE name = ?", (name,)):
                raise TenancyError(f"there is a tenant {name} already")
            self._insert(tenant, key)
        return key

    def get(self, name: str) -> Tenant:
        """Raises `UnknownTenant`."""
        for row in self.database.select(f"SELECT {_TENANT} FROM tenants WHERE name = ?", (name,)):
            return _tenant(row)
        raise UnknownTenant(_unknown(name))

    def update(self, name: str, limits: Limits, operator: bool) -> None:
        """Other limits, from the next request on. Raises `UnknownTenant`."""
        self._change(
            """UPDATE tenants SET weight = ?, rpm = ?, tpm = ?, max_concurrency = ?, max_context = ?,
            max_output = ?, operator = ? WHERE name = ?""",
            (*_columns(limits), int(operator), name),
            name,
        )

    def rotate_key(self, name: str) -> str:
        """A new key, in place of the one before, if any. Raises `UnknownTenant`."""
        key = new_key()
        self._change("UPDATE tenants SET key_hash = ? WHERE name = ?", (hash_key(key), name), name)
        return key

    def remove(self, name: str) -> None:
        """Its key is worth nothing from now on; its usage stays. Raises `UnknownTenant`."""
        self._change("DELETE FROM tenants WHERE name = ?", (name,), name)

    def authenticate(self, key: str) -> Tenant:
        """Whose key it is. Raises `InvalidApiKey`."""
        hashed = hash_key(key)
        found_rows = self.database.select(
            f"SELECT key_hash, {_TENANT} FROM tenants WHERE key_hash = ?", (hashed,)
        )
        for found, *row in found_rows:
            if hmac.compare_digest(bytes(found), hashed):
                return _tenant(row)
        raise InvalidApiKey("there is no tenant with this API key")

    def declare(self, tenants: Sequence[DeclaredTenant]) -> None:
        """Add or update the tenants of the config file; others stay, and so do keys that it does not have."""
        with self.database.transaction():
            for declared in tenants:
                self._insert(
                    Tenant(declared.name, declared.limits, declared.operator, time.time()), declared.key
                )

    def book(self, bookings: Sequence[Booking]) -> None:
        """Add to the tenants' usage: all of it, or nothing when it raises."""
        with self.database.transaction():
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

    def usage(self, tenant: str | None, since: float | None) -> Sequence[Usage]:
        """What a tenant, or each one, has used since the minute of that Unix time; sorted by name.

        Removed tenants are among them, and those that have used nothing are not.
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

    def _insert(self, tenant: Tenant, key: str | None) -> None:
        """A tenant, or what is new of it; without a key it keeps the one that it has."""
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

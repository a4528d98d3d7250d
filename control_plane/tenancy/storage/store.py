"""Tenants and their usage in a database.

The SQL is here, in usage_store.py, in migrations.py, and for the shared accounts in shared_limiter.py.
"""

import hmac
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from control_plane.errors import ExpiredApiKey, InvalidApiKey, TenancyError, UnknownTenant
from control_plane.tenancy.declared import DeclaredTenant
from control_plane.tenancy.keys import MAIN, KeyRecord, checked_key, hash_key, new_key
from control_plane.tenancy.storage.database import Duplicate, open_database
from control_plane.tenancy.storage.usage_store import UsageStore
from control_plane.tenancy.tenants import Limits, Tenant

_LIMITS = tuple(limit.name for limit in fields(Limits))
_CHANGEABLE = (*_LIMITS, "operator")
_TENANT = ", ".join(f"tenants.{column}" for column in ("name", *_CHANGEABLE, "created"))


class TenantStore(UsageStore):
    """One connection to the database, for use in the thread that has opened it.

    Nothing is cached, so every process sees a change at once. A committed write survives a crash of the
    process. Methods raise `TenancyError` if the database cannot be read or written.
    """

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
        tenant = Tenant(name, limits, operator, self._clock())
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
            f"UPDATE tenants SET {', '.join(f'{column} = ?' for column in _CHANGEABLE)} WHERE name = ?",
            (*_columns(limits), int(operator), name),
            name,
        )

    def remove(self, name: str) -> None:
        """Remove a tenant and its keys, but not its usage. Raises `UnknownTenant`."""
        with self.database.transaction():
            self._change("DELETE FROM tenants WHERE name = ?", (name,), name)
            self.database.change("DELETE FROM keys WHERE tenant = ?", (name,))

    def rotate_key(self, name: str) -> str:
        """Replace a tenant's main key, and return the new one. Raises `UnknownTenant`."""
        key = new_key()
        with self.database.transaction():
            self.get(name)
            self._put_key(name, MAIN, key, None)
        return key

    def add_key(self, tenant: str, name: str, expires: float | None) -> str:
        """Add a key of that name, which is refused from the Unix time `expires` on, and return it.

        Raises `UnknownTenant`, or `TenancyError` if the tenant has a key of that name.
        """
        key = new_key()
        with self.database.transaction():
            if any(other.name == name for other in self.keys(tenant)):
                raise TenancyError(f"tenant {tenant} has a key {name} already")
            self._put_key(tenant, name, key, expires)
        return key

    def keys(self, tenant: str) -> Sequence[KeyRecord]:
        """The tenant's keys, sorted by name, with those that have expired. Raises `UnknownTenant`."""
        self.get(tenant)
        rows = self.database.select(
            "SELECT name, created, expires FROM keys WHERE tenant = ? ORDER BY name", (tenant,)
        )
        return [KeyRecord(*row) for row in rows]

    def revoke_key(self, tenant: str, name: str) -> None:
        """Forget a key. Raises `UnknownTenant`, or `TenancyError` if there is none of that name."""
        with self.database.transaction():
            self.get(tenant)
            if not self.database.change("DELETE FROM keys WHERE tenant = ? AND name = ?", (tenant, name)):
                raise TenancyError(f"tenant {tenant} has no key {name[:80]!r}")

    def authenticate(self, key: str) -> Tenant:
        """Look up a tenant by key. Raises `InvalidApiKey`, or `ExpiredApiKey`."""
        hashed = hash_key(key)
        found_rows = self.database.select(
            f"""SELECT keys.hash, keys.expires, {_TENANT}
            FROM keys JOIN tenants ON tenants.name = keys.tenant WHERE keys.hash = ?""",
            (hashed,),
        )
        for found, expires, *row in found_rows:
            if hmac.compare_digest(bytes(found), hashed):
                if expires is not None and expires <= self._clock():
                    until = f"{datetime.fromtimestamp(expires, UTC):%Y-%m-%d %H:%M} UTC"
                    raise ExpiredApiKey(f"this API key has expired: it was valid until {until}")
                return _tenant(row)
        # In OpenAI's words, by which LiteLLM knows the error.
        raise InvalidApiKey("Incorrect API key provided: there is no tenant with it")

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
                    Tenant(declared.name, declared.limits, declared.operator, self._clock()), declared.key
                )

    def list(self) -> Sequence[Tenant]:
        """All tenants, sorted by name."""
        return [_tenant(row) for row in self.database.select(f"SELECT {_TENANT} FROM tenants ORDER BY name")]

    def _insert(self, tenant: Tenant, key: str | None) -> None:
        """Insert a tenant or update it. Without a key, an existing tenant keeps its own."""
        self.database.change(
            f"""INSERT INTO tenants (name, {", ".join(_CHANGEABLE)}, created)
            VALUES ({", ".join("?" * (len(_CHANGEABLE) + 2))}) ON CONFLICT (name) DO UPDATE SET
            {", ".join(f"{column} = excluded.{column}" for column in _CHANGEABLE)}""",
            (tenant.name, *_columns(tenant.limits), int(tenant.operator), tenant.created),
        )
        if key is not None:
            self._put_key(tenant.name, MAIN, key, None)

    def _put_key(self, tenant: str, name: str, key: str, expires: float | None) -> None:
        """Give a tenant a key, in place of one with that name. Raises `TenancyError` if another has it."""
        hashed = hash_key(key)
        known = self.database.change(
            "UPDATE keys SET expires = ? WHERE tenant = ? AND name = ? AND hash = ?",
            (expires, tenant, name, hashed),
        )
        if known:
            return
        self.database.change(
            "DELETE FROM keys WHERE tenant = ? AND (name = ? OR hash = ?)", (tenant, name, hashed)
        )
        try:
            self.database.change(
                "INSERT INTO keys (hash, tenant, name, expires, created) VALUES (?, ?, ?, ?, ?)",
                (hashed, tenant, name, expires, self._clock()),
            )
        except Duplicate as error:
            raise TenancyError(f"tenant {tenant}: its key belongs to another tenant") from error

    def _change(self, statement: str, values: tuple[Any, ...], name: str) -> None:
        if self.database.change(statement, values) == 0:
            raise UnknownTenant(_unknown(name))


def _columns(limits: Limits) -> tuple[Any, ...]:
    return tuple(getattr(limits, name) for name in _LIMITS)


def _tenant(row: Sequence[Any]) -> Tenant:
    name, *limits, operator, created = row
    return Tenant(name, Limits(*limits), bool(operator), created)


def _unknown(name: str) -> str:
    return f"there is no tenant {name[:80]!r}"

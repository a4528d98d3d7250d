"""Tenants and usage in PostgreSQL, through psycopg (https://www.psycopg.org), for several control planes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from control_plane.errors import ConfigError, TenancyError
from control_plane.tenancy.storage.database import BUSY_SECONDS, DatabaseFault, Duplicate
from control_plane.tenancy.storage.migrations import APPLICATION_ID, MIGRATIONS, postgres

_VERSION = "CREATE TABLE IF NOT EXISTS faasmoe_schema (version BIGINT NOT NULL)"
_TABLES = "SELECT 1 FROM pg_tables WHERE schemaname = current_schema() AND tablename = ?"


class PostgresDatabase:
    """A `Database` in PostgreSQL. A broken connection is replaced at the next call."""

    def __init__(self, url: str) -> None:
        """Connect. Raises `ConfigError` if the URL is wrong or the server unreachable."""
        self._url = url
        self._name = _described(url)
        self._connection = self._connect()

    @classmethod
    @contextmanager
    def open(cls, url: str) -> Iterator["PostgresDatabase"]:
        """Connect, and bring the schema up to date. Raises `ConfigError`."""
        database = cls(url)
        try:
            database._migrate()
            yield database
        finally:
            database._connection.close()

    def refresh(self) -> bool:
        """See `Database.refresh`. The server knows its database; a broken connection is replaced anyway."""
        return False

    def merge(self) -> None:
        """See `Database.merge`. The server does it."""

    def limit_waits(self, seconds: float) -> None:
        """See `Database.limit_waits`. Nothing changes: each tenant has a lock, held for milliseconds."""

    def select(self, statement: str, values: Sequence[Any] = ()) -> Sequence[Any]:
        """See `Database.select`."""
        with self._translated_errors(), self._usable().cursor() as cursor:
            return cursor.execute(_placed(statement), tuple(values)).fetchall()

    def change(self, statement: str, *rows: Sequence[Any]) -> int:
        """See `Database.change`."""
        with self._translated_errors(), self._usable().cursor() as cursor:
            cursor.executemany(_placed(statement), [tuple(row) for row in rows])
            return cursor.rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See `Database.transaction`. An advisory lock admits one writer at a time."""
        with self._translated_errors(), self._usable().transaction():
            self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (APPLICATION_ID,))
            yield

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """A transaction that excludes others with the same name, in all processes."""
        with self._translated_errors(), self._usable().transaction():
            self._connection.execute(
                "SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (APPLICATION_ID & 0x7FFF, name)
            )
            yield

    def _connect(self) -> psycopg.Connection:
        milliseconds = int(BUSY_SECONDS * 1000)
        options = f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"
        try:
            return psycopg.connect(
                self._url, autocommit=True, connect_timeout=int(BUSY_SECONDS), options=options
            )
        except (psycopg.Error, ValueError) as error:
            raise ConfigError(f"cannot reach the database {self._name}: {_line(error)}") from error

    def _usable(self) -> psycopg.Connection:
        if self._connection.closed or self._connection.broken:
            try:
                self._connection = self._connect()
            except ConfigError as error:
                raise DatabaseFault(str(error)) from error
        return self._connection

    def _migrate(self) -> None:
        """Bring the schema up to date. Raises `ConfigError` for another program's or a newer schema."""
        try:
            with self.transaction():
                if self.select(_TABLES, ("tenants",)) and not self.select(_TABLES, ("faasmoe_schema",)):
                    raise ConfigError(f"the database {self._name}: its table tenants is another program's")
                self._connection.execute(_VERSION)
                rows = self.select("SELECT version FROM faasmoe_schema")
                version = int(rows[0][0]) if rows else 0
                if version > len(MIGRATIONS):
                    raise ConfigError(
                        f"the database {self._name} belongs to a newer version of FaaSMoE (its schema is "
                        f"number {version}, and this version's is {len(MIGRATIONS)})"
                    )
                for statements in MIGRATIONS[version:]:
                    for statement in statements:
                        self._connection.execute(postgres(statement))
                if version < len(MIGRATIONS):
                    self._connection.execute("DELETE FROM faasmoe_schema")
                    self.change("INSERT INTO faasmoe_schema VALUES (?)", (len(MIGRATIONS),))
        except TenancyError as error:
            raise ConfigError(str(error)) from error

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise PostgreSQL's errors as `TenancyError`."""
        try:
            yield
        except psycopg.IntegrityError as error:
            raise Duplicate(f"the database {self._name}: {_line(error)}") from error
        except psycopg.Error as error:
            raise DatabaseFault(f"the database {self._name}: {_line(error)}") from error


def _placed(statement: str) -> str:
    return statement.replace("?", "%s")


def _described(url: str) -> str:
    """Name and host of a database, without its password. Raises `ConfigError` for a malformed URL."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error as error:
        raise ConfigError(f"not a PostgreSQL URL: {_line(error)}") from error
    return f"{parts.get('dbname', '')} at {parts.get('host', 'localhost')}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())

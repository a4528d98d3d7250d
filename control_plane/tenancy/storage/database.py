"""The database of tenants and usage: a SQLite file, or PostgreSQL that several control planes share."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from control_plane.errors import ConfigError, TenancyError
from control_plane.files import state_folder

BUSY_SECONDS = 5.0
"""Most seconds to wait for a lock that another process holds, or for PostgreSQL to answer."""
POSTGRES_SCHEMES = ("postgresql://", "postgres://")


class DatabaseFault(TenancyError):
    """The database cannot be read or written."""


class Duplicate(TenancyError):
    """A write would break a uniqueness constraint."""


class Database(Protocol):
    """One connection, for use in the thread that has opened it. Every method raises `DatabaseFault`.

    A statement has a question mark for each value.
    """

    def refresh(self) -> bool:
        """Before using it again: connect anew if that is needed. Returns whether it may be another now."""

    def merge(self) -> None:
        """After writing: leave nothing that would be lost or out of place if the file was replaced."""

    def limit_waits(self, seconds: float) -> None:
        """Wait no longer than this, from now on, for a lock that another process holds."""

    def select(self, statement: str, values: Sequence[Any] = ()) -> Sequence[Any]:
        """Run a query and return all its rows."""

    def change(self, statement: str, *rows: Sequence[Any]) -> int:
        """Run a statement once for each row of values. Returns how many rows of the database it changed."""

    def transaction(self) -> AbstractContextManager[None]:
        """Commit all writes of the block together, or none if it raises. There is one writer at a time."""


def is_postgres(address: Path | str) -> bool:
    """Whether an address is the URL of a PostgreSQL database, rather than a file."""
    return isinstance(address, str) and address.startswith(POSTGRES_SCHEMES)


def database_address(setting: str, environment: Mapping[str, str] = os.environ) -> Path | str:
    """The address of the database of tenants and usage: a file's path, or a PostgreSQL URL.

    The first of: the setting, $FAASMOE_DATABASE, and faasmoe.db in `state_folder`. Raises `ConfigError` if
    the path needs a home folder and the user has none.
    """
    chosen = setting or environment.get("FAASMOE_DATABASE")
    if chosen and is_postgres(chosen):
        return chosen
    try:
        return Path(chosen).expanduser() if chosen else state_folder(environment) / "faasmoe.db"
    except (RuntimeError, ConfigError) as error:
        raise ConfigError(f"database: {error}") from error


@contextmanager
def open_database(address: Path | str) -> Iterator[Database]:
    """Open a database and bring its schema up to date.

    Creates a missing file, readable and writable by its owner only. Raises `ConfigError` for a database that
    cannot be opened, or belongs to another program or to a newer version of FaaSMoE.
    """
    # Each driver is imported when it is used: psycopg is optional.
    if not is_postgres(address):
        from control_plane.tenancy.storage.sqlite import SqliteDatabase

        with SqliteDatabase.open(Path(address)) as file_database:
            yield file_database
        return
    try:
        from control_plane.tenancy.storage.postgres import PostgresDatabase
    except ModuleNotFoundError as error:
        raise ConfigError("PostgreSQL needs the package psycopg (faasmoe's extra postgres)") from error

    with PostgresDatabase.open(str(address)) as database:
        yield database


def check_exists(address: Path | str) -> None:
    """Raise `ConfigError` if the address is a file that does not exist."""
    if is_postgres(address):
        return
    path = Path(address)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot open the database {path}: {problem}") from error

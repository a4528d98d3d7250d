"""Where tenants are: a SQLite file, or a PostgreSQL database that several control planes share."""

import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from control_plane.errors import ConfigError, TenancyError
from control_plane.tenancy.storage.migrations import APPLICATION_ID, MIGRATIONS

BUSY_SECONDS = 5.0
"""How long to wait for another process that writes, or for a database elsewhere."""
POSTGRES_SCHEMES = ("postgresql://", "postgres://")


class Duplicate(TenancyError):
    """What was to be written is there already, under another name."""


class Database(Protocol):
    """One connection, for the thread that has opened it. All methods raise `TenancyError`.

    Statements have question marks for their values.
    """

    def select(self, statement: str, values: Sequence[Any] = ()) -> Sequence[Any]:
        """All rows."""

    def change(self, statement: str, *rows: Sequence[Any]) -> int:
        """Run it for each row of values; returns how many rows of the database it has changed."""

    def transaction(self) -> AbstractContextManager[None]:
        """All that is written inside, or nothing when it raises; nobody else writes meanwhile."""


def is_postgres(address: Path | str) -> bool:
    """Whether that is a PostgreSQL database's URL, and not a file's name."""
    return isinstance(address, str) and address.startswith(POSTGRES_SCHEMES)


@contextmanager
def opened(address: Path | str) -> Iterator[Database]:
    """The database, brought up to date; a file is made where there is none, for its owner only.

    Raises `ConfigError` for what is no such database, or a newer one, or cannot be written or reached.
    """
    if is_postgres(address):
        # Only who has one needs the driver.
        try:
            from control_plane.tenancy.storage.postgres import PostgresDatabase
        except ModuleNotFoundError as error:
            raise ConfigError("PostgreSQL needs the package psycopg (faasmoe's extra postgres)") from error

        with PostgresDatabase.open(str(address)) as database:
            yield database
        return
    path = Path(address)
    with _connected(path) as connection:
        yield SqliteDatabase(connection, path)


@dataclass(frozen=True)
class SqliteDatabase:
    """Other processes may have the same file open."""

    connection: sqlite3.Connection
    path: Path

    def select(self, statement: str, values: Sequence[Any] = ()) -> Sequence[Any]:
        """As every database's."""
        with self._told():
            return self.connection.execute(statement, values).fetchall()

    def change(self, statement: str, *rows: Sequence[Any]) -> int:
        """As every database's."""
        with self._told():
            return self.connection.executemany(statement, rows).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """As every database's."""
        with self._told(), _transaction(self.connection):
            yield

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise Duplicate(f"the database {self.path}: {error}") from error
        except sqlite3.Error as error:
            raise TenancyError(f"the database {self.path}: {error}") from error


@contextmanager
def _connected(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(path)
        # Autocommit: transactions are begun by name.
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    except (OSError, ValueError, sqlite3.Error) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot open the database {path}: {problem}") from error
    with closing(connection):
        try:
            _check_version(connection, path)
            for setting in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
                connection.execute(f"PRAGMA {setting}")
            _migrate(connection)
        except sqlite3.Error as error:
            raise ConfigError(f"cannot open the database {path}: {error}") from error
        yield connection


def check_exists(address: Path | str) -> None:
    """Raises `ConfigError` where there is no file."""
    if is_postgres(address):
        return
    path = Path(address)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot open the database {path}: {problem}") from error


def _make(path: Path) -> None:
    """An empty file for its owner only, where there is none. Raises `OSError` where it cannot be written.

    A file that is there is not opened: to close it would give up all locks that this process has on it, and
    SQLite in another process would take the database for its own and remove what is not merged yet.
    """
    try:
        # SQLite gives the files that it puts beside it the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if path.is_dir() or not os.access(path, os.R_OK | os.W_OK):
            number = errno.EISDIR if path.is_dir() else errno.EACCES
            raise OSError(number, os.strerror(number)) from None


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        # SQLite has ended it itself where its file is full or broken.
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    application, objects = connection.execute(
        "SELECT application_id, (SELECT count(*) FROM sqlite_master) FROM pragma_application_id"
    ).fetchone()
    if objects and application != APPLICATION_ID:
        raise ConfigError(f"cannot open the database {path}: it is another program's")
    if (version := _version(connection)) > len(MIGRATIONS):
        raise ConfigError(
            f"cannot open the database {path}: it belongs to a newer version of FaaSMoE "
            f"(its schema is number {version}, and this version's is {len(MIGRATIONS)})"
        )


def _migrate(connection: sqlite3.Connection) -> None:
    while (version := _version(connection)) < len(MIGRATIONS):
        with _transaction(connection):
            # Another process may have been faster.
            if _version(connection) == version:
                for statement in MIGRATIONS[version]:
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {version + 1}")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)

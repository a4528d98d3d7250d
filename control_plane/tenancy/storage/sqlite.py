"""Tenants and usage in a SQLite file."""

import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control_plane.errors import ConfigError, TenancyError
from control_plane.tenancy.storage.database import BUSY_SECONDS, Duplicate
from control_plane.tenancy.storage.migrations import APPLICATION_ID, MIGRATIONS


@dataclass(frozen=True)
class SqliteDatabase:
    """A `Database` in a file, which several processes may have open at the same time."""

    connection: sqlite3.Connection
    path: Path

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator["SqliteDatabase"]:
        """Open the file, or create it, and bring its schema up to date. Raises `ConfigError`."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _create(path)
            # isolation_level=None is autocommit: `_transaction` begins transactions explicitly.
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
            yield cls(connection, path)

    def select(self, statement: str, values: Sequence[Any] = ()) -> Sequence[Any]:
        """See `Database.select`."""
        with self._translated_errors():
            return self.connection.execute(statement, values).fetchall()

    def change(self, statement: str, *rows: Sequence[Any]) -> int:
        """See `Database.change`."""
        with self._translated_errors():
            return self.connection.executemany(statement, rows).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See `Database.transaction`."""
        with self._translated_errors(), _transaction(self.connection):
            yield

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise SQLite's errors as `TenancyError`."""
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise Duplicate(f"the database {self.path}: {error}") from error
        except sqlite3.Error as error:
            raise TenancyError(f"the database {self.path}: {error}") from error


def _create(path: Path) -> None:
    """Create an empty file for its owner only, unless it exists. Raises `OSError` if it cannot be written.

    An existing file must not be opened here: closing it would release every POSIX lock that this process
    holds on it. SQLite in another process would then take itself for the only user of the database and
    delete the write-ahead log before it is merged.
    """
    try:
        # SQLite creates its other files with the same mode as this one.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if path.is_dir() or not os.access(path, os.R_OK | os.W_OK):
            number = errno.EISDIR if path.is_dir() else errno.EACCES
            raise OSError(number, os.strerror(number)) from None


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    # IMMEDIATE takes the write lock at once: a later upgrade from a read lock could fail.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        # SQLite itself rolls back when the disk is full or the file is damaged.
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
            # Another process may have migrated it since the version was read.
            if _version(connection) == version:
                for statement in MIGRATIONS[version]:
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {version + 1}")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)

"""Opens the SQLite file that the tenants are in."""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from control_plane.errors import ConfigError
from control_plane.tenancy.migrations import APPLICATION_ID, MIGRATIONS

BUSY_SECONDS = 5.0
"""How long to wait for another process that writes."""


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection for this thread; the file is made where there is none, and brought up to date.

    Raises `ConfigError` for a file that is no such database, is a newer one, or cannot be written.
    """
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


def check_exists(path: Path) -> None:
    """Raises `ConfigError` where there is no file."""
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
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is written inside, or nothing when it raises."""
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
        with transaction(connection):
            # Another process may have been faster.
            if _version(connection) == version:
                for statement in MIGRATIONS[version]:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {version + 1}")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)

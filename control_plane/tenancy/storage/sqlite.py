"""Tenants and usage in a SQLite file."""

import errno
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from control_plane.errors import ConfigError
from control_plane.tenancy.storage.database import BUSY_SECONDS, DatabaseFault, Duplicate
from control_plane.tenancy.storage.file_state import FileState
from control_plane.tenancy.storage.migrations import APPLICATION_ID, MIGRATIONS

_TEMPORARY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL}
"""Faults after which the connection is as good as before."""
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
"""Faults of a file that is no database any more."""
_FAILED_WRITES = {
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
}
"""Errors when a full disk, or a limit, prevents writes. The connection can still read; a new one could not be
opened."""


class SqliteDatabase:
    """A `Database` in a file, which several processes may have open at the same time.

    Changes are in the file itself as soon as `merge` has run, and its write-ahead log is empty then. So the
    file can be copied, replaced or overwritten: `refresh` notices, and opens what is there now.
    """

    def __init__(self, path: Path, busy_seconds: float = BUSY_SECONDS) -> None:
        """`open` opens it."""
        self.path = path
        self._busy_seconds = busy_seconds
        self._connection: sqlite3.Connection | None = None
        self._file = FileState(path)
        self._version = 0
        """Changes when another connection commits."""

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator["SqliteDatabase"]:
        """Open the file, or create it, and bring its schema up to date. Raises `ConfigError`."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _create(path)
        except (OSError, ValueError) as error:
            problem = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"cannot open the database {path}: {problem}") from error
        database = cls(path)
        database._open(may_be_empty=True)
        try:
            yield database
        finally:
            with suppress(DatabaseFault):
                database.merge()
            database.close()

    def close(self) -> None:
        """Close the file. Raises nothing."""
        if self._connection:
            self._connection.close()
        self._connection = None

    def limit_waits(self, seconds: float) -> None:
        """Wait no longer than this, from now on, for a lock that another process holds."""
        self._busy_seconds = seconds
        if self._connection:
            self._connection.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")

    def refresh(self) -> bool:
        """See `Database.refresh`. Creates no file: one that is gone is a fault until it is there again."""
        if self._connection and not self._file.has_changed():
            return self._others_have_written()
        self._file.abandon_log(self.close, self._write_lock)
        if not self.path.exists():
            raise DatabaseFault(f"the database {self.path} is gone")
        try:
            self._open(may_be_empty=False)
        except ConfigError as error:
            raise DatabaseFault(str(error)) from error
        return True

    def merge(self) -> None:
        """See `Database.merge`."""
        with self._translated_errors():
            if self._file.has_changed():
                return  # The next `refresh` decides: merging could destroy what is there now.
            self._usable.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._file.remember()

    def select(self, statement: str, values: Sequence[Any] = ()) -> Sequence[Any]:
        """See `Database.select`."""
        with self._translated_errors():
            return self._usable.execute(statement, values).fetchall()

    def change(self, statement: str, *rows: Sequence[Any]) -> int:
        """See `Database.change`."""
        with self._translated_errors():
            return self._usable.executemany(statement, rows).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See `Database.transaction`."""
        with self._translated_errors(), _transaction(self._usable):
            yield

    @contextmanager
    def _write_lock(self) -> Iterator[None]:
        """Keep other processes from writing, if the file is open.

        Raises `DatabaseFault` while one does, or if the file cannot be read.
        SQLite locks no file that is damaged: there, it does nothing.
        """
        with ExitStack() as stack:
            if self._connection:
                try:
                    stack.enter_context(_transaction(self._connection))
                except sqlite3.DatabaseError as error:
                    if error.sqlite_errorcode & 0xFF not in _DAMAGED:
                        raise DatabaseFault(f"the database {self.path}: {error}") from error
            yield

    def _others_have_written(self) -> bool:
        """Whether another connection has committed since the last call; it may have restored a backup."""
        before = self._version
        ((self._version,),) = self.select("PRAGMA data_version")
        return self._version != before

    @property
    def _usable(self) -> sqlite3.Connection:
        if self._connection is None:
            raise DatabaseFault(f"the database {self.path} is not open")
        return self._connection

    def _open(self, may_be_empty: bool) -> None:
        """Connect to the file, and bring its schema up to date. Raises `ConfigError`."""
        try:
            # isolation_level=None is autocommit: `_transaction` begins transactions explicitly.
            self._connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=rw",
                timeout=self._busy_seconds,
                isolation_level=None,
                uri=True,
            )
            try:
                _check_version(self._connection, self.path, may_be_empty)
                _use_write_ahead_log(self._connection, self._busy_seconds)
                for setting in ("synchronous = NORMAL", "foreign_keys = ON"):
                    self._connection.execute(f"PRAGMA {setting}")
                _migrate(self._connection)
                self._file.remember(settled=may_be_empty)
            except BaseException:
                self.close()
                raise
        except (ValueError, sqlite3.Error) as error:
            raise ConfigError(f"cannot open the database {self.path}: {error}") from error

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raise SQLite's errors as `TenancyError`. After a fault, `refresh` opens the file again."""
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise Duplicate(f"the database {self.path}: {error}") from error
        except sqlite3.Error as error:
            code = error.sqlite_errorcode
            if code & 0xFF not in _TEMPORARY and code not in _FAILED_WRITES:
                self._file.forget()
            raise DatabaseFault(f"the database {self.path}: {error}") from error


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


def _use_write_ahead_log(connection: sqlite3.Connection, busy_seconds: float) -> None:
    """SQLite does not wait here for another process that is creating the same file, so this does."""
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(0.01)


def _check_version(connection: sqlite3.Connection, path: Path, may_be_empty: bool) -> None:
    application, objects = connection.execute(
        "SELECT application_id, (SELECT count(*) FROM sqlite_master) FROM pragma_application_id"
    ).fetchone()
    if objects and application != APPLICATION_ID:
        raise ConfigError(f"cannot open the database {path}: it is another program's")
    if not objects and not may_be_empty:
        raise ConfigError(f"cannot open the database {path}: it is empty")
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

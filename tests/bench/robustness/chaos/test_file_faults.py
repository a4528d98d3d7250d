"""Faults of files, without a server."""

import sqlite3
from contextlib import closing
from pathlib import Path

from bench.robustness.chaos import file_faults


def test_a_replaced_database_holds_what_was_written_before(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as open_before:
        open_before.execute("PRAGMA journal_mode = WAL")
        open_before.execute("CREATE TABLE t (n)")
        open_before.execute("INSERT INTO t VALUES (7)")
        inode = file.stat().st_ino
        file_faults.put_copy_in_place(file)
        assert file.stat().st_ino != inode
        with closing(sqlite3.connect(file, isolation_level=None)) as after:
            after.execute("INSERT INTO t VALUES (8)")
            assert after.execute("SELECT n FROM t").fetchall() == [(7,), (8,)]
            assert open_before.execute("SELECT n FROM t").fetchall() == [(7,)]
    assert [path.name for path in tmp_path.iterdir()] == ["x.db"]

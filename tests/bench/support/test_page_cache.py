"""The page cache's share of a file is measured without reading the file."""

from pathlib import Path

from bench.support.page_cache import cached_bytes


def test_a_file_that_was_just_written_is_cached(tmp_path: Path) -> None:
    whole, empty = tmp_path / "whole", tmp_path / "empty"
    whole.write_bytes(bytes(3 * 4096 + 1))
    empty.write_bytes(b"")
    assert cached_bytes([whole, empty]) == 4 * 4096
    assert cached_bytes([]) == 0

"""What the page cache holds of a file is seen without having it read."""

from pathlib import Path

from bench.support.page_cache import cached_bytes


def test_what_was_just_written_is_cached(tmp_path: Path) -> None:
    whole, empty = tmp_path / "whole", tmp_path / "empty"
    whole.write_bytes(bytes(3 * 4096 + 1))
    empty.write_bytes(b"")
    assert cached_bytes([whole, empty]) == 4 * 4096
    assert cached_bytes([]) == 0

"""A spool file keeps what it can, within its bound."""

from pathlib import Path

import pytest

from control_plane.tenancy.storage import spool as spool_module
from control_plane.tenancy.storage.spool import Spool
from control_plane.tenancy.usage import Entry
from tests.support.ledgers import booking


def test_a_damaged_line_costs_only_its_own_bookings(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path / "a")
    entries = [Entry("me", number, (booking(f"t{number}"),)) for number in range(1, 4)]
    for entry in entries:
        spool.append(entry)
    spool.close()
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content.replace(b't2"', b'tX"') + content[:50])
    (found,) = Spool.left_behind(tmp_path / "a")
    assert list(found.entries(0)) == [entries[0], entries[2]]
    found.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_spool_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "MAX_SPOOL_BYTES", 300)
    spool = Spool.create(tmp_path / "a")
    spool.append(Entry("me", 1, (booking("acme"),)))
    size = spool.path.stat().st_size
    with pytest.raises(OSError, match="and may have 300"):
        spool.append(Entry("me", 2, (booking("acme"),) * 3))
    assert spool.path.stat().st_size == size
    spool.close()

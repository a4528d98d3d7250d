"""Fixtures of the ledger's tests."""

import pytest

from control_plane.tenancy.storage import ledger


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger gives up soon."""
    monkeypatch.setattr(ledger, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(ledger, "LAST_PAUSE_SECONDS", 0.2)

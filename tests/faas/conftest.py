"""Runs tests of invokers over both ways of sending and receiving: in C, and in Python."""

import pytest

from control_plane.faas.wire import plain_calls


@pytest.fixture(params=["C", "Python"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with the C extension, and as if there were none."""
    if request.param == "Python":
        monkeypatch.setattr(plain_calls, "_extension", None)
    elif not plain_calls.are_compiled():
        pytest.skip("the C extension is not built")

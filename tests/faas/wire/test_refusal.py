"""How errors are read, whoever sends them."""

import json

from control_plane.faas.wire.refusal import MAX_CODE, MAX_QUOTED, read_error


def test_errors_are_quoted_shortly() -> None:
    body = json.dumps({"error": {"code": "starting", "message": "not\nyet"}}).encode()
    assert read_error(body) == ("starting", "not yet")
    assert read_error(b"Can't reach service for: f.\n") == ("", "Can't reach service for: f.")
    assert read_error(b"\x1b[31m\x00\xff") == ("", "[31m \ufffd")
    assert read_error(b"[" * 100_000) == ("", "[" * MAX_QUOTED)
    assert read_error(json.dumps({"error": {"code": "c" * 999, "message": "m" * 999}}).encode()) == (
        "c" * MAX_CODE,
        "m" * MAX_QUOTED,
    )

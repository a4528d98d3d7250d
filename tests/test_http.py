"""The undocumented parts of aiohttp that `control_plane.http` uses still exist.

A failure means that aiohttp has changed: adapt `control_plane/http.py`, then the pin in setup.cfg.
tests/api/test_http_edge.py tests the behaviour.
"""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from control_plane import http
from control_plane.http import serving
from tests.support.api.api_server import ApiClient, in_thread


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        (web.RequestHandler.finish_response, ["self", "request", "resp", "start_time"]),
        (web.RequestHandler.handle_error, ["self", "request", "status", "exc", "message"]),
        (web.RequestHandler.log_exception, ["self", "args", "kw"]),
        (web.RequestHandler.connection_made, ["self", "transport"]),
        (web.RequestHandler.connection_lost, ["self", "exc"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_overridden_method_has_the_expected_parameters(
    method: Callable[..., Any], parameters: list[str]
) -> None:
    assert list(inspect.signature(method).parameters) == parameters


@pytest.mark.parametrize("option", ["loop", "keepalive_timeout", "access_log"])
def test_a_connection_accepts_the_options(option: str) -> None:
    assert option in inspect.signature(web.RequestHandler).parameters


@pytest.mark.parametrize("path", ["/", "/nowhere"])
def test_every_request_is_counted(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiohttp calls the replaced `request_handler`, and `finish_response` for each response."""
    seen: list[str] = []

    class Watched(http._Connections):
        def answered(self, connection: web.RequestHandler) -> None:
            seen.append(f"{len(self._busy)} busy")
            super().answered(connection)
            seen.append(f"{len(self._waiting)} waiting")

    monkeypatch.setattr(http, "_Connections", Watched)
    with in_thread(serving(web.Application(), "127.0.0.1", 0)) as url:
        assert ApiClient(url).answer("GET", path).status == 404
    assert seen == ["1 busy", "1 waiting"]

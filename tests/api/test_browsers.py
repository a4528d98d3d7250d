"""Pages in browsers: which may read answers (CORS), and which reach a server that needs no key."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from control_plane.api.cors import Origins
from tests.support.api.api_server import (
    ASK,
    COMPLETION,
    ApiClient,
    ApiResponse,
    add_tenant,
    completion,
    serving,
)
from tests.support.models.chat_fixtures import NewTenant

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
ALLOWED = "https://chat.example.com"
FOREIGN = "https://attacker.example"
LOCAL = ("http://localhost:3000", "http://127.0.0.1", "https://localhost", "http://[::1]:5173")
ASKED_HEADERS = "authorization,content-type,x-api-key,anthropic-version,x-stainless-retry-count"


@pytest.fixture(scope="module")
def pages(chat_partition: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiClient]:
    """A server that needs keys, and allows one origin; the client has a key."""
    database = tmp_path_factory.mktemp("database") / "faasmoe.db"
    with serving(chat_partition, database, cors_origins=(ALLOWED,)) as server:
        yield server.with_key(add_tenant(database, "page"))


def preflight(api: ApiClient, path: str, origin: str, method: str = "POST") -> ApiResponse:
    """The headers of a preflight, which has no key, before a page's request with a key and JSON."""
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": ASKED_HEADERS}
    return api.with_key(None).answer("OPTIONS", path, None, Origin=origin, **asked)


@pytest.mark.parametrize("origin", [ALLOWED, *LOCAL])
@pytest.mark.parametrize(("path", "method"), [(CHAT, "POST"), (f"{CHAT}/", "POST"), ("/v1/models", "GET")])
def test_a_preflight_of_an_allowed_page(pages: ApiClient, origin: str, path: str, method: str) -> None:
    answer = preflight(pages, path, origin, method)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert method in answer.headers["Access-Control-Allow-Methods"].split(", ")
    assert answer.headers["Access-Control-Allow-Headers"] == ASKED_HEADERS
    assert answer.headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    "origin", [FOREIGN, "null", "http://localhost.attacker.example", "http://localhost@a.b"]
)
def test_a_preflight_of_another_page(pages: ApiClient, origin: str) -> None:
    answer = preflight(pages, CHAT, origin)
    assert (answer.status, answer.headers["Vary"]) == (403, "Origin")
    assert "--cors-origin" in answer.error["message"]
    assert not any(name.lower().startswith("access-control") for name in answer.headers)


def test_answers_errors_and_streams_can_be_read(pages: ApiClient) -> None:
    requests: dict[int, Callable[[ApiClient], ApiResponse]] = {
        200: lambda api: completion_of_page(api, {}),
        400: lambda api: completion_of_page(api, {"temperature": -1}),
        401: lambda api: completion_of_page(api.with_key("fm-nobody-s"), {}),
        404: lambda api: api.answer("GET", "/v1/nowhere", Origin=ALLOWED),
        405: lambda api: api.answer("GET", CHAT, Origin=ALLOWED),
        413: lambda api: completion_of_page(api, {"prompt": "a" * (4 << 20)}),
    }
    for status, send in requests.items():
        answer = send(pages)
        assert answer.status == status
        assert answer.headers["Access-Control-Allow-Origin"] == ALLOWED
        assert answer.headers["Access-Control-Expose-Headers"] == "*"
        assert answer.headers["Vary"] == "Origin"
    with closing(pages.send("POST", COMPLETION, {**ASK, "stream": True}, Origin=ALLOWED)) as connection:
        stream = connection.getresponse()
        assert (stream.status, stream.headers["Access-Control-Allow-Origin"]) == (200, ALLOWED)
        assert stream.read().endswith(b"data: [DONE]\n\n")


def completion_of_page(api: ApiClient, changes: dict[str, object]) -> ApiResponse:
    return api.answer("POST", COMPLETION, {**ASK, **changes}, Origin=ALLOWED)


def test_a_foreign_page_with_a_key_cannot_read_its_answer(pages: ApiClient) -> None:
    """The server answers, as it does any program with the key, but the browser hides the answer."""
    answer = pages.answer("POST", COMPLETION, ASK, Origin=FOREIGN)
    assert (answer.status, answer.headers["Vary"]) == (200, "Origin")
    assert answer.headers["Access-Control-Allow-Origin"] is None


def test_programs_get_no_headers_for_pages(pages: ApiClient) -> None:
    answer = completion(pages)
    assert answer.headers["Access-Control-Allow-Origin"] is None
    assert answer.headers["Vary"] == "Origin"


@pytest.mark.parametrize("origin", [FOREIGN, "null", "chrome-extension://abc"])
def test_a_foreign_page_reaches_no_open_server(api: ApiClient, origin: str) -> None:
    for method, path, body in (
        ("POST", COMPLETION, ASK),
        ("GET", "/v1/models", None),
        ("POST", "/tokenize", ASK),
    ):
        refused = api.answer(method, path, body, Origin=origin)
        assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
        assert "--cors-origin" in refused.error["message"]
        assert api.answer("GET", "/v1/models", Origin=LOCAL[0]).status == 200


def test_a_key_is_as_good_from_a_foreign_page(pages: ApiClient) -> None:
    assert pages.answer("GET", "/v1/models", Origin=FOREIGN).status == 200


def test_pages_see_no_addresses_of_an_open_server(api: ApiClient) -> None:
    """The gateways' addresses are hidden, even if the page's host name points to this server."""
    assert api.status()["gateways"][0]["url"]
    for page in ({"Origin": FOREIGN}, {"Host": "rebound.example:8000"}):
        assert api.answer("GET", "/status", None, **page).json["gateways"] == [{"url": None, "error": None}]


def test_all_origins_may_be_allowed() -> None:
    for origin in (FOREIGN, "null", "chrome-extension://abc", *LOCAL):
        assert Origins(("*",)).allows(origin)
        assert Origins((origin,)).allows(origin)
        assert Origins(()).allows(origin) == (origin in LOCAL)


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:",
        "http://localhost/",
        "http://127.0.0.1.example",
        "http://127.0.0.1:80:80",
        "localhost",
        "file://localhost",
        "http://localhost:3000\n",
        "http://[::1].example",
        "http://[::2]",
        "http://1270.0.1",
    ],
)
def test_what_only_looks_like_loopback(origin: str) -> None:
    assert not Origins(()).allows(origin)


def test_keys_of_pages_are_checked(new_tenant: NewTenant) -> None:
    """A preflight needs no key, and does nothing; the request after it needs one."""
    tenant = new_tenant("preflighted")
    assert preflight(tenant, COMPLETION, LOCAL[0]).status == 204
    assert tenant.with_key(None).answer("POST", COMPLETION, ASK, Origin=LOCAL[0]).status == 401
    assert tenant.answer("POST", COMPLETION, ASK, Origin=LOCAL[0]).status == 200

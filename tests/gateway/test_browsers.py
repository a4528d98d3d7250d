"""A page in a browser can neither change a gateway nor call its functions."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from control_plane.faas.gateway_access import Credentials
from tests.support.gateways.echo_client import EchoClient, deployment
from tests.support.gateways.echo_gateway import asynchronous, echo_gateway

PATHS = ("/system/functions", "/system/secrets", "/function/echo", "/function/echo/_/residency", "/metrics")
PAGES: list[Mapping[str, str]] = [
    {"Origin": "http://attacker.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "http://attacker.example:8080", "Host": "attacker.example:8080"},  # DNS rebinding
    {"Host": "attacker.example:8080"},
    {"Host": "127.0.0.1.attacker.example"},
    {"Host": "localhost.attacker.example"},
    {"Host": "["},
    {"Sec-Fetch-Site": "cross-site"},  # an image: no Origin
    {"Sec-Fetch-Site": "same-site"},
]
PROGRAMS: list[Mapping[str, str]] = [
    {},
    {"Host": "127.0.0.1"},
    {"Host": "LOCALHOST:8080"},
    {"Host": "[::1]:8080"},
    {"Host": "127.0.0.1:8080", "Origin": "http://127.0.0.1:8080", "Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
]


async def status(gateway: EchoClient, method: str, path: str, headers: Mapping[str, str]) -> int:
    async with gateway.http.request(method, path, headers=headers) as answer:
        return answer.status


@pytest.mark.parametrize("headers", PAGES)
@asynchronous
async def test_requests_of_pages_are_refused(tmp_path: Path, headers: Mapping[str, str]) -> None:
    async with echo_gateway(tmp_path) as gateway:
        for path in PATHS:
            for method in ("GET", "POST", "PUT", "DELETE"):
                assert await status(gateway, method, path, headers) == 403
        async with gateway.http.post("/system/functions", json=deployment(), headers=headers) as answer:
            assert answer.status == 403
            assert (await answer.text()).count("\n") == 1
        async with gateway.http.get("/system/functions") as answer:
            assert await answer.json() == []


@pytest.mark.parametrize("headers", PROGRAMS)
@asynchronous
async def test_requests_of_programs_are_served(tmp_path: Path, headers: Mapping[str, str]) -> None:
    async with echo_gateway(tmp_path) as gateway:
        assert await status(gateway, "GET", "/system/functions", headers) == 200


@asynchronous
async def test_a_gateway_that_others_reach_may_have_any_name_but_still_serves_no_pages(
    tmp_path: Path,
) -> None:
    async with echo_gateway(tmp_path, host="0.0.0.0") as gateway:
        assert await status(gateway, "GET", "/system/functions", {"Host": "box.lan:8080"}) == 200
        page = {"Host": "box.lan:8080", "Origin": "http://box.lan:8080"}
        assert await status(gateway, "POST", "/system/functions", page) == 403


@asynchronous
async def test_a_page_is_refused_with_a_password_too(tmp_path: Path) -> None:
    credentials = Credentials("admin", "secret")
    async with echo_gateway(tmp_path, credentials) as gateway:
        headers = {"Authorization": credentials.basic_auth}
        assert await status(gateway, "GET", "/system/functions", headers) == 200
        page = headers | {"Origin": "http://attacker.example"}
        assert await status(gateway, "GET", "/system/functions", page) == 403


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (None, 201),  # OpenFaaS' Go client
        ("application/json", 201),
        ("application/json; charset=utf-8", 201),
        ("text/plain", 415),
        ("text/plain;charset=UTF-8", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("text/json", 415),
        ("", 415),
    ],
)
@asynchronous
async def test_only_json_is_read(tmp_path: Path, content_type: str | None, expected: int) -> None:
    async with echo_gateway(tmp_path) as gateway:
        headers = {} if content_type is None else {"Content-Type": content_type}
        async with gateway.http.post(
            "/system/secrets",
            data=b'{"name": "key", "value": "42"}',
            headers=headers,
            skip_auto_headers=["Content-Type"],
        ) as answer:
            assert answer.status == expected

"""Whatever is sent to `/system`, the answer is one clear line, and not a fault of the gateway."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control_plane.gateway.request_body import MAX_BYTES
from tests.support.gateways.echo_client import EchoClient, deployment
from tests.support.gateways.echo_gateway import asynchronous, echo_gateway

pytestmark = pytest.mark.slow

JSON = {"Content-Type": "application/json"}
ROUTES = [
    *((method, "/system/functions") for method in ("POST", "PUT", "DELETE")),
    *((method, "/system/secrets") for method in ("POST", "PUT", "DELETE")),
    ("POST", "/system/scale-function/echo"),
]
LONG = "x" * 60_000
BODIES: list[bytes] = [
    b"",
    b"{no json",
    b"[" * 60_000,
    b'{"service":' * 5_000,
    b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    b"NaN",
    b'{"replicas": NaN}',
    b'{"replicas": 1e400}',
    b'{"replicas": -1}',
    b'{"replicas": 1' + b"0" * 5_000 + b"}",
    b'{"replicas": true}',
    b'{"service": "\xff"}',
    b'{"service": "\\ud800"}',
    b'{"name": "\\udcff\\ud800", "functionName": "\\ud800."}',
    b'{"service": "\\u0000", "name": "\\u0000", "functionName": "a\\u0000b"}',
    b'{"service": "echo", "service": 3}',
    b'\xef\xbb\xbf{"service": "echo"}',
    '{"service": "echo"}'.encode("utf-16"),
    b"null",
    b"[]",
    b'"text"',
    b"7",
    json.dumps(dict.fromkeys(["name", "service", "functionName"], "x" * 20_000)).encode(),
    json.dumps({"name": "a" * 254, "service": "a" * 254, "functionName": "a\n\nb"}).encode(),
    json.dumps({"name": "key", "rawValue": LONG[:59_999]}).encode(),
    json.dumps(deployment() | {"labels": {f"{n}": "" for n in range(5_000)}, "image": "x"}).encode(),
    json.dumps(deployment() | {"labels": {"com.openfaas.scale.min": LONG}}).encode(),
    json.dumps(deployment() | {"labels": {"com.openfaas.scale.zero-duration": LONG}}).encode(),
    json.dumps(deployment() | {"labels": {LONG: 1}}).encode(),
    json.dumps(deployment() | {"envVars": {LONG: ""}}).encode(),
    json.dumps(deployment() | {"secrets": [LONG]}).encode(),
    json.dumps(deployment() | {"image": LONG}).encode(),
    json.dumps(deployment() | {"namespace": LONG}).encode(),
    json.dumps(deployment(FAASMOE_FUNCTION=LONG)).encode(),
    json.dumps(deployment(COLOUR="a\nb\0c\ud800")).encode(),
]


async def refused(gateway: EchoClient, method: str, path: str, body: bytes) -> str:
    async with gateway.http.request(method, path, data=body, headers=JSON) as answer:
        text = await answer.text()
        assert answer.status in (400, 404), (method, path, body[:80], answer.status, text[:200])
        assert text.count("\n") == 1
        assert len(text) < 600
        return text


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:24]))
@asynchronous
async def test_a_malformed_body_gives_one_clear_line(tmp_path: Path, body: bytes) -> None:
    async with echo_gateway(tmp_path) as gateway:
        for method, path in ROUTES:
            await refused(gateway, method, path, body)
        async with gateway.http.get("/system/functions") as answer:
            assert await answer.json() == []


@asynchronous
async def test_a_body_that_is_too_long_gives_413(tmp_path: Path) -> None:
    async def in_chunks() -> AsyncIterator[bytes]:
        for _ in range(MAX_BYTES // 100 + 1):
            yield b"y" * 100

    async with echo_gateway(tmp_path) as gateway:
        for body in (b"y" * (MAX_BYTES + 1), in_chunks()):
            async with gateway.http.post("/system/functions", data=body, headers=JSON) as answer:
                assert answer.status == 413
                assert await answer.text() == f"a body may have {MAX_BYTES} bytes at most\n"


@pytest.mark.parametrize("length", ["-1", "1e3", "18446744073709551617", "0x10", ""])
@asynchronous
async def test_a_wrong_length_gives_400(tmp_path: Path, length: str) -> None:
    async with echo_gateway(tmp_path) as gateway:
        url = gateway.http._base_url
        assert url is not None
        reader, writer = await asyncio.open_connection(url.host, url.port)
        head = f"POST /system/functions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(5):
            assert (await reader.readline()).split()[1] == b"400"
        writer.close()


@asynchronous
async def test_a_long_name_in_a_path_gives_404(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        for path in ("/system/function/", "/function/", "/system/logs?name="):
            async with gateway.http.get(path + "x" * 8000) as answer:
                assert answer.status == 404
                assert len(await answer.text()) < 700


@asynchronous
async def test_secrets_and_readers_of_logs_are_limited(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        for number in range(256):
            body = {"name": f"key-{number}", "value": "42"}
            async with gateway.http.post("/system/secrets", json=body) as answer:
                assert answer.status == 201
        assert "256 secrets" in await refused(
            gateway, "POST", "/system/secrets", b'{"name": "one-more", "value": "42"}'
        )
        await gateway.deploy(deployment(labels={"com.openfaas.scale.min": "0"}))
        query = {"name": "echo", "follow": "true"}
        readers = [await gateway.http.get("/system/logs", params=query) for _ in range(64)]
        async with gateway.http.get("/system/logs", params=query) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert await gateway.remove() == 200
        for reader in readers:
            assert await reader.read() == b""


FIELDS = st.sampled_from(
    [
        *("service", "name", "image", "namespace", "envVars", "labels", "annotations", "secrets"),
        *("constraints", "limits", "requests", "replicas", "functionName", "serviceName"),
        *("value", "rawValue", "memory"),
    ]
)
ANY: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("echo"),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(FIELDS | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(FIELDS, ANY, max_size=6) | st.builds(
    lambda changes: deployment() | changes, st.dictionaries(FIELDS, ANY, min_size=1, max_size=3)
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(ROUTES), OBJECTS), min_size=10, max_size=40))
def test_no_json_is_a_fault_of_the_gateway(
    tmp_path: Path, requests: list[tuple[tuple[str, str], dict[str, Any]]]
) -> None:
    @asynchronous
    async def send_all() -> None:
        async with echo_gateway(tmp_path) as gateway:
            for (method, path), body in requests:
                data = json.dumps(body).encode()
                async with gateway.http.request(method, path, data=data, headers=JSON) as answer:
                    assert answer.status < 500, (method, path, body)
            for path in ("/system/functions", "/system/secrets", "/metrics"):
                async with gateway.http.get(path) as answer:
                    assert answer.status == 200
                    await answer.read()

    send_all()

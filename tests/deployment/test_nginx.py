"""The control plane behind deploy/nginx/faasmoe.conf, which a real nginx reads."""

import asyncio
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from control_plane.api import sending
from control_plane.api.receiving import MAX_BODY_BYTES
from control_plane.config import ServeConfig
from control_plane.http import serving
from control_plane.quantities import parse_duration
from tests.support.api.api_server import ASK, COMPLETION, HEARTBEAT, ApiClient, holding, read_events
from tests.support.api.api_server import serving as serving_model
from tests.support.paths import ROOT

CONFIG = ROOT / "deploy" / "nginx" / "faasmoe.conf"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
needs_nginx = pytest.mark.skipif(
    NGINX is None or shutil.which("openssl") is None, reason="needs nginx, openssl"
)


def test_its_limits_are_the_control_planes() -> None:
    text = CONFIG.read_text()
    (size,) = re.findall(r"client_max_body_size (\d+)m;", text)
    assert int(size) << 20 == MAX_BODY_BYTES
    (wait,) = re.findall(r"proxy_read_timeout (\w+);", text)
    assert parse_duration(wait) > ServeConfig.request_timeout


@needs_nginx
def test_tokens_come_through_one_by_one(tmp_path: Path) -> None:
    """The server sends its second event only after the client has the first one."""
    received = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        assert request.headers["Authorization"] == "Bearer key"
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await received.wait()
        await response.write(b"data: 2\n\n")
        return response

    async def scenario() -> None:
        app = web.Application()
        app.add_routes([web.post("/v1/completions", stream), web.get("/metrics", stream)])
        async with serving(app, "127.0.0.1", 0) as url:
            with nginx(tmp_path, url.port or 0) as (port, trusted):
                front = f"https://localhost:{port}"
                client = aiohttp.ClientSession(
                    headers={"Authorization": "Bearer key"},
                    connector=aiohttp.TCPConnector(ssl=trusted),
                    timeout=aiohttp.ClientTimeout(total=10),
                )
                async with client as http:
                    async with http.post(f"{front}/v1/completions") as answer:
                        assert await answer.content.readuntil(b"\n\n") == b"data: 1\n\n"
                        received.set()
                        assert await answer.content.read() == b"data: 2\n\n"
                    async with http.get(f"{front}/metrics") as answer:
                        assert answer.status == 403

    asyncio.run(scenario())


@pytest.mark.slow
@needs_nginx
def test_a_stream_waits_longer_than_nginx_does(
    chat_partition: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nginx's defaults, which buffer answers and speak HTTP/1.0 to the control plane."""
    monkeypatch.setattr(sending, "HEARTBEAT_SECONDS", 0.2)
    with (
        serving_model(chat_partition, tmp_path / "db", open=True, max_sequences=1) as api,
        socket.create_server(("127.0.0.1", 0)) as reserved,
    ):
        alone = api.post(COMPLETION, **ASK)["choices"][0]["text"]
        port = reserved.getsockname()[1]
        reserved.close()
        server = (
            f"server {{ listen 127.0.0.1:{port}; location / {{ "
            f"proxy_pass http://127.0.0.1:{api.url.port}; proxy_read_timeout 1s; }} }}"
        )
        with running_nginx(tmp_path, port, server), ExitStack() as busy:
            front = ApiClient(URL.build(scheme="http", host="127.0.0.1", port=port))
            busy.enter_context(holding(api))
            # An answer that does not stream cannot say that it waits.
            assert front.answer("POST", COMPLETION, ASK).status == 504
            with closing(front.send("POST", COMPLETION, {**ASK, "stream": True})) as connection:
                answer = connection.getresponse()
                started = time.monotonic()
                while time.monotonic() - started < 2.5:
                    assert answer.read(len(HEARTBEAT)) == HEARTBEAT
                busy.close()
                events = read_events(answer.read())
        assert "".join(event["choices"][0]["text"] for event in events) == alone


@contextmanager
def nginx(folder: Path, upstream: int) -> Iterator[tuple[int, ssl.SSLContext]]:
    """nginx with the file's configuration before a port; yields its port, and a context that trusts it."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*make.split(), *names], check=True, capture_output=True, timeout=30)
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    text = CONFIG.read_text()
    replaced = {
        "listen 443": f"listen 127.0.0.1:{port}",
        "/etc/ssl/faasmoe": str(folder),
        "127.0.0.1:8000": f"127.0.0.1:{upstream}",
        "api.example.com": "localhost",
    }
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    with running_nginx(folder, port, text):
        yield port, ssl.create_default_context(cafile=str(certificate))


@contextmanager
def running_nginx(folder: Path, port: int, server: str) -> Iterator[None]:
    """nginx with the configuration of a server, which listens on the port."""
    paths = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/log; events {{}}\n"
        f"http {{ access_log off;\n{paths}{server}}}\n"
    )
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-c", str(config)])
    try:
        deadline = time.monotonic() + 20
        while not answers(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(10)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True

"""Addresses and credentials of gateways."""

from pathlib import Path

import pytest

from control_plane.errors import ConfigError
from control_plane.faas.gateway_access import Credentials, parse_url, read_credentials


def test_credentials_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("s3cret\n")
    assert read_credentials("admin", path) == Credentials("admin", "s3cret")
    assert read_credentials("admin", None) is None


def test_a_password_is_never_shown() -> None:
    assert "s3cret" not in repr(Credentials("admin", "s3cret"))


@pytest.mark.parametrize("data", [None, b"", b" \n", b"\xff"])
def test_bad_password_files(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "password"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=f"password file {path}"):
        read_credentials("admin", path)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1", 8080),
        ("http://gateway/", "gateway", 80),
        ("http://[::1]:5", "::1", 5),
    ],
)
def test_urls(text: str, host: str, port: int) -> None:
    url = parse_url(text)
    assert (url.host, url.port) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:8080",
        "gateway",
        "https://gateway",
        "http://",
        "http://gateway/ui",
        "http://a:99999",
        "http://[",
    ],
)
def test_bad_urls(text: str) -> None:
    with pytest.raises(ConfigError, match="not a"):
        parse_url(text)

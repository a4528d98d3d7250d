"""How to reach an OpenFaaS gateway: its address and the credentials for it."""

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from yarl import URL

from control_plane.errors import ConfigError


@dataclass(frozen=True)
class Credentials:
    """User and password for a gateway's HTTP basic authentication."""

    user: str
    password: str = field(repr=False)

    @property
    def basic_auth(self) -> str:
        """The value of the Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


class GatewayAccess(NamedTuple):
    """A gateway's address, and the credentials to send; None sends none."""

    url: URL
    credentials: Credentials | None = None


def read_credentials(user: str, password_file: Path | None) -> Credentials | None:
    """Read the password from a file; without a file, return None.

    Raises `ConfigError` for a file that cannot be read or is empty.
    """
    if password_file is None:
        return None
    try:
        password = password_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the password file {password_file}: {error}") from error
    if not password:
        raise ConfigError(f"the password file {password_file} is empty")
    return Credentials(user, password)


def parse_url(text: str) -> URL:
    """Parse an address such as http://127.0.0.1:8080. Raises `ConfigError` for anything else."""
    try:
        url = URL(text)
    except ValueError as error:
        raise ConfigError(f"not a URL: {text!r}: {error}") from error
    if url.scheme != "http" or not url.host or url.user or url.path not in ("", "/"):
        raise ConfigError(f"not an address like http://127.0.0.1:8080: {text!r}")
    return url

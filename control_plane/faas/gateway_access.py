"""How to reach OpenFaaS gateways and their functions: addresses, passwords and the functions' secret."""

import base64
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from yarl import URL

from control_plane.errors import ConfigError
from control_plane.files import state_folder
from functions.contract.secret import FunctionSecret


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


def default_secret_file() -> Path:
    """The file of the functions' secret if none is named. Raises `ConfigError` for a user without a home."""
    return state_folder() / "function-secret"


def read_function_secret(file: Path) -> FunctionSecret:
    """Read the functions' secret from a file. Raises `ConfigError`."""
    try:
        return FunctionSecret.read(file)
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot read the functions' secret {file}: {problem}") from error


def known_function_secret(file: Path | None) -> FunctionSecret | None:
    """The secret in the file, or in the default file if that exists; else None. Raises `ConfigError`."""
    chosen = file or default_secret_file()
    return read_function_secret(chosen) if file or chosen.exists() else None


def make_function_secret(file: Path) -> FunctionSecret:
    """The secret in the file, which is written with a random one if it is missing. Raises `ConfigError`."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_function_secret(file)
    except OSError as error:
        raise ConfigError(f"cannot write the functions' secret {file}: {error.strerror}") from error
    with os.fdopen(descriptor, "w") as opened:
        opened.write(random_function_secret().value)
    return read_function_secret(file)


def random_function_secret() -> FunctionSecret:
    """A new secret."""
    return FunctionSecret(secrets.token_hex(32))


def parse_url(text: str) -> URL:
    """Parse an address such as http://127.0.0.1:8080. Raises `ConfigError` for anything else."""
    try:
        url = URL(text)
    except ValueError as error:
        raise ConfigError(f"not a URL: {text!r}: {error}") from error
    if url.scheme != "http" or not url.host or url.user or url.path not in ("", "/"):
        raise ConfigError(f"not an address like http://127.0.0.1:8080: {text!r}")
    return url

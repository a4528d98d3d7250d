"""Settings, read once: a YAML file, the command line over it, secrets from files."""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from yarl import URL

from control_plane.errors import ConfigError


@dataclass(frozen=True)
class Credentials:
    """A gateway's basic auth."""

    user: str
    password: str = field(repr=False)

    @property
    def basic_auth(self) -> str:
        """The value of the Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


@dataclass(frozen=True)
class ServeConfig:
    """The control plane's settings; a YAML config file has these names as its keys."""

    host: str = "127.0.0.1"
    port: int = 8000
    max_batch_tokens: int = 512
    """Rows of one engine step: longer prompts are computed in chunks of this size."""
    max_sequences: int = 32
    """Sequences that run at the same time; more wait."""
    kv_cache_mb: int = 512
    """Most memory for keys and values; touched as it is used."""
    threads: int = 0
    """Compute threads of the dense part; 0 takes all cores for a model that is large enough to gain."""
    invocation_timeout: float = 30.0
    """Seconds before one attempt at calling a function is given up."""
    invocation_deadline: float = 60.0
    """Seconds before a call, with all its attempts, is given up and the request fails."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name in ("port", "threads"):
                if value < 0:
                    raise ConfigError(f"{setting.name} must not be negative: {value}")
            # Neither is a NaN between the two, nor can a wait be infinite.
            elif setting.type in (int, float) and not 0 < value < math.inf:
                raise ConfigError(f"{setting.name} must be positive, not {value}")
        if self.port > 65535:
            raise ConfigError(f"port must be at most 65535, not {self.port}")

    @classmethod
    def load(cls, path: Path | None, overrides: Mapping[str, Any]) -> "ServeConfig":
        """The settings of the file, if there is one, under the overrides that are not None."""
        settings = _read_yaml(path) if path else {}
        known = {setting.name: setting.type for setting in fields(cls)}
        for name, value in settings.items():
            if name not in known:
                raise ConfigError(f"{path}: unknown setting {name!r}; there are {', '.join(known)}")
            wanted = (int, float) if known[name] is float else known[name]
            if isinstance(value, bool) or not isinstance(value, wanted):  # type: ignore[arg-type]
                raise ConfigError(f"{path}: {name} must be {known[name].__name__}, not {value!r}")  # type: ignore[union-attr]
        return replace(
            cls(**settings), **{name: value for name, value in overrides.items() if value is not None}
        )


def read_credentials(user: str, password_file: Path | None) -> Credentials | None:
    """Credentials with the password that the file holds; None without a file."""
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
    """An http address such as http://127.0.0.1:8080. Raises `ConfigError`."""
    try:
        url = URL(text)
    except ValueError as error:
        raise ConfigError(f"not a URL: {text!r}: {error}") from error
    if url.scheme != "http" or not url.host or url.user or url.path not in ("", "/"):
        raise ConfigError(f"not an address like http://127.0.0.1:8080: {text!r}")
    return url


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold settings, one `name: value` a line")
    return settings

"""Settings, read once: a YAML file, the command line over it, secrets from files."""

import base64
import ipaddress
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yarl import URL

from control_plane.errors import ConfigError
from control_plane.quantities import parse_bytes, parse_seconds
from control_plane.tenancy.declared import DeclaredTenant, read_declared
from control_plane.tenancy.storage.database import is_postgres

SCHEDULINGS = ("fair", "fcfs")
LOG_LEVELS = ("debug", "info", "warning", "error")

_MAY_BE_ZERO = ("port", "threads", "drain_seconds")
_CHOICES = {"scheduling": SCHEDULINGS, "log_level": LOG_LEVELS}
_READERS: Mapping[str, Callable[[str], float]] = {
    "memory_budget": parse_bytes,
    "idle_timeout": parse_seconds,
}
"""Of settings that a file may also have as text with a unit."""


@dataclass(frozen=True)
class Credentials:
    """A gateway's basic auth."""

    user: str
    password: str = field(repr=False)

    @property
    def basic_auth(self) -> str:
        """The value of the Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


class GatewayAccess(NamedTuple):
    """A gateway's address, and who we are there."""

    url: URL
    credentials: Credentials | None = None


@dataclass(frozen=True)
class ServeConfig:
    """The control plane's settings; a YAML config file has these names as its keys."""

    host: str = "127.0.0.1"
    port: int = 8000
    max_batch_tokens: int = 512
    """Rows of one engine step: longer prompts are computed in chunks of this size."""
    max_sequences: int = 32
    """Sequences that run at the same time; more wait."""
    max_queued: int = 1024
    """Sequences of all tenants that wait or run; requests for more are refused."""
    max_queued_per_tenant: int = 128
    """Of one tenant."""
    scheduling: str = "fair"
    """Whose turn it is: "fair" across tenants, or "fcfs": first come, first served."""
    prefetch: bool = True
    """Whether functions are told which experts to expect next, while they have less memory than experts."""
    kv_cache_mb: int = 512
    """Most memory for keys and values; touched as it is used."""
    memory_budget: int | None = None
    """Bytes that the control plane and all functions together may use; None is no limit."""
    idle_timeout: float = 900.0
    """Seconds without a call after which a function goes to zero."""
    image_prefix: str = ""
    """Registry of the functions' image, for those that have to be deployed on another gateway."""
    threads: int = 0
    """Compute threads of the dense part; 0 takes all cores for a model that is large enough to gain."""
    invocation_timeout: float = 30.0
    """Seconds before one attempt at calling a function is given up."""
    invocation_deadline: float = 60.0
    """Seconds before a call, with all its attempts, is given up and the request fails."""
    request_timeout: float = 600.0
    """Seconds before a request is given up, waiting included."""
    drain_seconds: float = 30.0
    """How long running answers may take once the server is told to stop."""
    open: bool = False
    """Serve requests without a key, too, as the tenant that their `user` field names; on loopback only."""
    database: str = ""
    """File with tenants and usage, or a PostgreSQL URL; see `database_address` for the default."""
    tenants: tuple[DeclaredTenant, ...] = ()
    """Added to the database, or updated there, when the server starts."""
    log_level: str = "info"
    log_prompts: bool = False
    """Whether what tenants ask is logged."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name in _CHOICES and value not in _CHOICES[setting.name]:
                allowed = ", ".join(_CHOICES[setting.name])
                raise ConfigError(f"{setting.name} must be one of {allowed}, not {value!r}")
            if setting.type in (int, float) or (setting.name in _READERS and value is not None):
                _check_number(setting.name, value)
        if self.max_batch_tokens <= self.max_sequences:
            raise ConfigError(
                f"max_batch_tokens must be more than max_sequences ({self.max_sequences}), not "
                f"{self.max_batch_tokens}: a step has a row for each sequence that runs, and some for prompts"
            )
        if self.port > 65535:
            raise ConfigError(f"port must be at most 65535, not {self.port}")
        if self.open and not is_loopback(self.host):
            raise ConfigError(f"open: whoever reaches {self.host} would be served; it needs a loopback host")

    @classmethod
    def load(
        cls, path: Path | None, overrides: Mapping[str, Any], open_on_loopback: bool = False
    ) -> "ServeConfig":
        """The settings of the file, if there is one, under the overrides that are not None.

        `open_on_loopback` is for a server that, unless it is told otherwise, is open where it may be.
        """
        settings = _typed(path, _read_yaml(path)) if path else {}
        settings |= {name: value for name, value in overrides.items() if value is not None}
        if open_on_loopback:
            settings.setdefault("open", is_loopback(settings.get("host", cls.host)))
        return cls(**settings)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server on that host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def database_address(setting: str, environment: Mapping[str, str] = os.environ) -> Path | str:
    """Where tenants and usage are: the setting; else $FAASMOE_DATABASE; else the user's state folder.

    A file, or PostgreSQL's URL. The folder is $XDG_STATE_HOME
    (https://specifications.freedesktop.org/basedir-spec), or ~/.local/state. Raises `ConfigError` for a user
    without a home.
    """
    chosen = setting or environment.get("FAASMOE_DATABASE")
    if chosen and is_postgres(chosen):
        return chosen
    try:
        if chosen:
            return Path(chosen).expanduser()
        state = environment.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    except RuntimeError as error:
        raise ConfigError(f"database: {error}") from error
    return Path(state, "faasmoe", "faasmoe.db")


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


def _typed(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """A file's settings, all known and of their types; the tenants are read."""
    known = {setting.name: setting.type for setting in fields(ServeConfig)}
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"{path}: unknown setting {name!r}; there are {', '.join(known)}")
        kind = known[name]
        wanted = (int, float) if kind is float else (kind,)
        # What is no plain type is read below. A bool is no int here.
        if isinstance(kind, type) and name not in _READERS and type(value) not in wanted:
            raise ConfigError(f"{path}: {name} must be {kind.__name__}, not {value!r}")
    try:
        read: dict[str, Any] = {
            name: _quantity(name, settings[name]) for name in _READERS if name in settings
        }
        if "tenants" in settings:
            read["tenants"] = read_declared(settings["tenants"], path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return {**settings, **read}


def _quantity(name: str, value: object) -> float:
    """A setting that is text with a unit, or a plain number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"{name}: expected an amount, not {value!r}")
    try:
        return _READERS[name](str(value))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _check_number(name: str, value: float) -> None:
    if value < 0 and name in _MAY_BE_ZERO:
        raise ConfigError(f"{name} must not be negative: {value}")
    # Neither is a NaN between the two, nor can a wait be infinite.
    if not 0 <= value < math.inf or (value == 0 and name not in _MAY_BE_ZERO):
        raise ConfigError(f"{name} must be positive, not {value}")

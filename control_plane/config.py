"""The control plane's settings: options of the command line, then a YAML file's, then defaults."""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from msgspec import Meta

from control_plane.errors import ConfigError
from control_plane.quantities import BYTES, DURATION, parse_bytes, parse_seconds
from control_plane.tenancy.declared import DeclaredTenant, read_declared
from control_plane.validation import check_settings, quoted
from functions.host.sockets import is_loopback

Scheduling = Literal["fair", "fcfs"]
SamplingSource = Literal["model", "none"]
LogLevel = Literal["debug", "info", "warning", "error"]
LOG_LEVELS: tuple[str, ...] = get_args(LogLevel)
SAMPLING_SOURCES: tuple[str, ...] = get_args(SamplingSource)

_MAX_INTEGER = 2**63 - 1
_MAX_FLOAT = sys.float_info.max  # Excludes infinity.
_Port = Annotated[int, Meta(ge=0, le=65535, description="a whole number from 0 to 65535")]
_Count = Annotated[int, Meta(ge=1, le=_MAX_INTEGER, description="a whole number above zero")]
_CountOrZero = Annotated[int, Meta(ge=0, le=_MAX_INTEGER, description="a whole number, zero or more")]
_Seconds = Annotated[float, Meta(gt=0, le=_MAX_FLOAT, description=f"{DURATION}, above zero")]
_SecondsOrZero = Annotated[float, Meta(ge=0, le=_MAX_FLOAT, description=f"{DURATION}, zero or more")]
_Bytes = Annotated[int, Meta(ge=1, le=_MAX_INTEGER, description=f"{BYTES}, above zero")]
_ModelName = Annotated[
    str,
    Meta(
        pattern=r"^[\w.:@+-]+(/[\w.:@+-]+)*\Z",
        max_length=200,
        description="a list of names such as gpt-4o or lab/model:1b, of at most 200 characters",
    ),
]
_Origin = Annotated[
    str,
    Meta(
        pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^\s/?#@*A-Z]+)\Z",
        description="a list of origins such as https://chat.example.com, or of * for all",
    ),
]

_BytesOrZero = Annotated[int, Meta(ge=0, le=_MAX_INTEGER, description=f"{BYTES}, zero or more")]

_MAX_YAML_BYTES = 1 << 20
_MAX_YAML_VALUES = 100_000

_PARSERS: Sequence[tuple[object, Callable[[str], float]]] = (
    (_Seconds, parse_seconds),
    (_SecondsOrZero, parse_seconds),
    (_Bytes | None, parse_bytes),
    (_BytesOrZero, parse_bytes),
)
"""The types of settings that a file may give as text with a unit, such as "6GB" or "15m"."""


PRIVATE_NETWORKS = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
"""The networks of private addresses; containers and pods commonly have one."""


@dataclass(frozen=True)
class ServeConfig:
    """The control plane's settings. The attributes' names are the keys of a YAML config file.

    Raises `ConfigError`, which names the setting.
    """

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: _Port = 8000
    """TCP port to listen on; 0 takes a free one."""
    max_batch_tokens: _Count = 512
    """Most tokens in one engine step. Longer prompts are computed in chunks of this size."""
    max_sequences: _Count = 32
    """Most sequences of one step. Others pause or wait."""
    max_queued: _Count = 1024
    """Most sequences of all tenants together that wait or run. Requests for more are refused."""
    max_queued_per_tenant: _Count = 128
    """Most sequences of one tenant that wait or run. Requests for more are refused."""
    scheduling: Annotated[Scheduling, Meta(description="one of fair, fcfs")] = "fair"
    """Order of service: "fair" shares the engine among tenants; "fcfs" is first come, first served."""
    prefetch: bool = True
    """Whether to predict experts and prefetch them in functions whose memory limit is below their size."""
    kv_cache_mb: _Count = 512
    """Most memory for the attention's keys and values, in MB (2^20 bytes). It is allocated on first use."""
    prefix_cache: bool = True
    """Whether what a prompt has computed stays there for the tenant's next prompts that begin alike."""
    memory_budget: _Bytes | None = None
    """Most memory of the control plane and all functions together, in bytes. None is no limit."""
    idle_timeout: _Seconds = 900.0
    """Seconds without a call before a function is scaled to zero."""
    image_prefix: str = ""
    """Registry of the functions' image, for functions that fail over to another gateway."""
    function_secret_file: str = ""
    """File with the secret that functions share. "" is `default_secret_file`, if that exists."""
    threads: _CountOrZero = 0
    """Compute threads of the dense part. 0 uses all cores if the model is large enough to gain from them."""
    invocation_timeout: _Seconds = 30.0
    """Seconds before one attempt to call a function is abandoned."""
    invocation_deadline: _Seconds = 60.0
    """Seconds before a call to a function, with all its attempts, is abandoned and the request fails."""
    function_networks: tuple[str, ...] = PRIVATE_NETWORKS
    """Networks in which functions are called directly; others are called through their gateways only."""
    request_timeout: _Seconds = 600.0
    """Seconds before a request is abandoned, including the time that it waits."""
    drain_seconds: _SecondsOrZero = 30.0
    """Seconds that running requests have to finish after the server is asked to stop."""
    sampling_defaults: Annotated[SamplingSource, Meta(description="one of model, none")] = "model"
    """What counts where a request does not say how to sample: "model" is its generation_config.json."""
    served_model_names: tuple[_ModelName, ...] = ()
    """Names by which requests may ask for the model. Answers have the first, unless a request asks for
    another. Without any, it is the partition's name."""
    cors_origins: tuple[_Origin, ...] = ()
    """Origins of pages in browsers that may use the API, besides those on loopback; "*" allows all."""
    open: bool = False
    """Whether to serve requests without a key, as the tenant in their `user` field. On loopback only."""
    strict_fields: bool = False
    """Whether to refuse fields of requests that have no effect. Without it, they are ignored."""
    database: str = ""
    """SQLite file with tenants and usage, or a PostgreSQL URL. "" is the default: see `database_address`."""
    batch_storage: _BytesOrZero = 1_000_000_000
    """Most bytes of disk for files and batches, beside the database. 0 switches them off."""
    tenants: tuple[DeclaredTenant, ...] = ()
    """Tenants that the server adds to the database, or updates there, when it starts."""
    log_level: Annotated[LogLevel, Meta(description=f"one of {', '.join(LOG_LEVELS)}")] = "info"
    """Least severe level that is logged: "debug", "info", "warning" or "error"."""
    log_prompts: bool = False
    """Whether to log the text of prompts."""

    def __post_init__(self) -> None:
        check_settings(vars(self), _types())
        if self.max_batch_tokens <= self.max_sequences:
            raise ConfigError(
                f"max_batch_tokens must be more than max_sequences ({self.max_sequences}), not "
                f"{self.max_batch_tokens}: a step has a row for each sequence that runs, and some for prompts"
            )
        for network in self.function_networks:
            try:
                ip_network(network)
            except ValueError as error:
                raise ConfigError(f"function_networks: {error}") from error
        if self.open and not is_loopback(self.host):
            raise ConfigError(f"open: a server without keys must listen on loopback, not on {self.host}")

    @classmethod
    def load(
        cls, path: Path | None, overrides: Mapping[str, Any], open_on_loopback: bool = False
    ) -> "ServeConfig":
        """Read the file, if there is one, and apply the overrides that are not None. Raises `ConfigError`.

        With `open_on_loopback`, a server on a loopback host is open unless `open` is set.
        """
        settings = _read_settings(path) if path else {}
        settings |= {name: value for name, value in overrides.items() if value is not None}
        if open_on_loopback:
            settings.setdefault("open", is_loopback(settings.get("host", cls.host)))
        return cls(**settings)


def _types() -> dict[str, Any]:
    return {setting.name: setting.type for setting in fields(ServeConfig)}


def _read_settings(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, checked one by one. Raises `ConfigError`, which names the file."""
    settings = _read_yaml(path)
    try:
        settings = {name: _parsed(name, value) for name, value in settings.items()}
        if "tenants" in settings:
            settings["tenants"] = read_declared(settings["tenants"], path.parent)
        check_settings(settings, _types())
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return settings


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_YAML_BYTES + 1)
        if len(data) > _MAX_YAML_BYTES:
            raise ConfigError(f"{path} has more than {_MAX_YAML_BYTES} bytes")
        settings = _load_yaml(data.decode()) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    # Constructing values raises ValueError for numbers and dates that there cannot be.
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold settings, one `name: value` a line")
    return settings


def _parsed(name: str, value: object) -> object:
    """The amount that a text with a unit stands for. Other values are returned as they are."""
    for kind, parse in _PARSERS:
        if isinstance(value, str) and kind == _types().get(name):
            # What cannot be parsed is refused later, with other values of a wrong type.
            with suppress(ConfigError):
                return parse(value)
    return value


def _load_yaml(text: str) -> Any:
    """The YAML document. Raises `yaml.YAMLError`, ValueError and RecursionError."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        # A few lines of aliases can stand for more values than fit into memory.
        if _size(node, {}) > _MAX_YAML_VALUES:
            raise ValueError(f"it has more than {_MAX_YAML_VALUES} values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """The number of values below a node, each as often as aliases repeat it.

    Raises ValueError for a mapping that has a key twice.
    """
    if id(node) not in sizes:
        # An alias inside the value that it stands for would have no end.
        sizes[id(node)] = _MAX_YAML_VALUES + 1
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            names = [str(key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if repeated := [name for name, times in Counter(names).items() if times > 1]:
                raise ValueError(f"{quoted(repeated[0])} is there twice")
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        sizes[id(node)] = 1 + sum(_size(child, sizes) for child in children)
    return sizes[id(node)]

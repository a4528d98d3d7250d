"""Types of options, and options that several commands share."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from control_plane.config import LOG_LEVELS, SAMPLING_SOURCES
from control_plane.errors import ConfigError
from control_plane.faas.gateway_access import GatewayAccess, parse_url, read_credentials
from control_plane.quantities import parse_bytes, parse_seconds

DEFAULT_GATEWAY = "http://127.0.0.1:8080"
DEFAULT_SERVER = "http://127.0.0.1:8000"

Command = TypeVar("Command", bound=Callable[..., Any])


class _Quantity(click.ParamType[float]):
    """An amount with a unit, above zero unless `allows_zero`."""

    def __init__(self, name: str, parse: Callable[[str], float], allows_zero: bool = False) -> None:
        self.name = name
        self._parse = parse
        self._allows_zero = allows_zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            amount = self._parse(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        if amount > 0 or self._allows_zero:
            return amount
        return self.fail(f"expected more than zero, got {value!r}", param, ctx)


class Listed(click.ParamType[tuple[Any, ...]]):
    """Several values with commas between them, as a tuple."""

    name = "LIST"

    def __init__(self, read: Callable[[str], Any]) -> None:
        """`read` converts the text of one value, or raises `ConfigError` or ValueError."""
        self._read = read

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        if not isinstance(value, str):
            return tuple(value)
        try:
            return tuple(self._read(item.strip()) for item in value.split(",") if value)
        except (ConfigError, ValueError) as error:
            self.fail(str(error), param, ctx)


FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
SECRET_FILE = click.Path(dir_okay=False, path_type=Path)
"""A file whose reader reports that it is missing; click does not check it."""
OUTPUT_FILE = click.Path(dir_okay=False, path_type=Path)
PORT = click.IntRange(0, 65535)
COUNT = click.IntRange(1)
BYTES = _Quantity("bytes", parse_bytes)
BYTES_OR_ZERO = _Quantity("bytes", parse_bytes, allows_zero=True)
SECONDS = _Quantity("duration", parse_seconds)


def option_group(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Join options to one decorator. The help text lists them in this order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def other_option(context: click.Context, name: str) -> str | None:
    """An option on the command line besides the one of that name; None if there is none."""
    given = (
        parameter.opts[0]
        for parameter in context.command.params
        if isinstance(parameter, click.Option)
        and parameter.name != name
        and context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    )
    return next(given, None)


def gateway_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options for the gateways. The command gets them as `gateways`, a list of `GatewayAccess`."""

    @functools.wraps(command)
    def with_gateways(
        *arguments: Any,
        gateway_urls: Sequence[str],
        gateway_user: str,
        gateway_password_files: Sequence[Path],
        **others: Any,
    ) -> Any:
        gateways = _gateway_access(gateway_urls, gateway_user, gateway_password_files)
        return command(*arguments, gateways=gateways, **others)

    decorate: Callable[[Callable[..., Any]], Callable[..., Any]] = option_group(
        click.option(
            "--gateway",
            "gateway_urls",
            multiple=True,
            default=[DEFAULT_GATEWAY],
            envvar="OPENFAAS_URL",
            show_default=True,
            show_envvar=True,
            help="Address of the OpenFaaS gateway. Repeat it to spread the functions over several gateways.",
        ),
        click.option(
            "--gateway-user",
            default="admin",
            show_default=True,
            help="User for the gateway's basic authentication.",
        ),
        click.option(
            "--gateway-password-file",
            "gateway_password_files",
            multiple=True,
            type=SECRET_FILE,
            help="File with the gateway's password: one for all gateways, or one for each in the same order. "
            " [default: no authentication]",
        ),
    )
    return decorate(with_gateways)


def _gateway_access(
    gateway_urls: Sequence[str], gateway_user: str, gateway_password_files: Sequence[Path]
) -> list[GatewayAccess]:
    urls = [parse_url(url) for url in gateway_urls]
    if len({url.origin() for url in urls}) < len(urls):
        raise ConfigError("--gateway: the same address is given twice")
    files: list[Path | None] = list(gateway_password_files) or [None]
    if len(files) not in (1, len(urls)):
        raise ConfigError(f"--gateway-password-file: {len(files)} files for {len(urls)} gateways")
    credentials = [read_credentials(gateway_user, file) for file in files]
    return [GatewayAccess(*each) for each in zip(urls, credentials * (len(urls) // len(files)), strict=True)]


image_prefix_option = click.option(
    "--image-prefix",
    default="",
    metavar="REGISTRY/",
    help="Registry of the functions' image, such as host:5000/.  [default: none]",
)


function_secret_option = click.option(
    "--function-secret-file",
    type=SECRET_FILE,
    help="File with the secret that the control plane and its functions share. `faasmoe deploy` writes it if "
    "it is missing.  [default: faasmoe/function-secret in $XDG_STATE_HOME or ~/.local/state]",
)


def whole_seconds(duration: float | None) -> int | None:
    """Round a duration to whole seconds, at least 1: a function that exits at once would be useless."""
    return None if duration is None else max(1, round(duration))


idle_exit_option = click.option(
    "--idle-exit",
    type=SECONDS,
    metavar="DURATION",
    help="Time without a call, such as 60s or 15m, after which a function's process exits. For gateways that "
    "do not scale to zero, but restart a function at its next call. Read docs/deploy-faasd.md about "
    "licences first.  [default: never]",
)

database_option = click.option(
    "--database",
    metavar="FILE|URL",
    help="Database of tenants and usage: a file, or a PostgreSQL database that several servers share "
    "(postgresql://user@host/name).  [default: $FAASMOE_DATABASE, or faasmoe/faasmoe.db in $XDG_STATE_HOME "
    "or ~/.local/state]",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

KEY_VARIABLE = "FAASMOE_API_KEY"
key_option = click.option(
    "--key-file",
    type=SECRET_FILE,
    help=f"File with the tenant's key.  [default: the key in ${KEY_VARIABLE}, if any]",
)
server_option = click.option(
    "--server",
    default=DEFAULT_SERVER,
    envvar="FAASMOE_URL",
    show_default=True,
    show_envvar=True,
    help="Address of the control plane.",
)

# The control plane's settings. An option that is not given is None: the config file or the default applies.
_CONFIG_FILE = click.option(
    "--config",
    "config_file",
    type=FILE,
    help="YAML file with settings. Options on the command line override it.  [default: none]",
)
_OPEN = click.option(
    "--open/--keys-only",
    default=None,
    help="Whether requests without a key are served, as the tenant in their user field. On loopback only.  "
    "[default: keys only; open for `up` on loopback]",
)
_MEMORY_BUDGET = click.option(
    "--memory-budget",
    type=BYTES,
    metavar="BYTES",
    help="Most memory of the control plane and all functions together, such as 6GB (10^9 bytes each), 6GiB "
    "(2^30) or 500MB. Functions then read experts from disk when they need them, and the busiest functions "
    "get the most memory. A budget that is too small is refused with the least that works.  "
    "[default: no limit]",
)
_IDLE_TIMEOUT = click.option(
    "--idle-timeout",
    type=SECONDS,
    metavar="DURATION",
    help="Time after its last call when a function is scaled to zero, such as 60s, 15m or 60 (seconds). "
    "Where the gateway does not scale to zero, the function frees its weights instead. The next prompt wakes "
    "it.  [default: 15m]",
)


def _given_or_none(context: click.Context, option: click.Parameter, values: Sequence[str]) -> object:
    """The values of an option that may be repeated; None if it is not given, like other settings."""
    return values or None


serve_options = option_group(
    _CONFIG_FILE,
    click.option("--host", help="Address to listen on.  [default: 127.0.0.1]"),
    click.option("--port", type=PORT, help="Port to listen on; 0 takes a free one.  [default: 8000]"),
    click.option(
        "--served-model-name",
        "served_model_names",
        multiple=True,
        callback=_given_or_none,
        metavar="NAME",
        help="Name by which requests may ask for the model. Repeat it for several; answers have the first, "
        "unless a request asks for another.  [default: the partition's name]",
    ),
    click.option(
        "--cors-origin",
        "cors_origins",
        multiple=True,
        callback=_given_or_none,
        metavar="ORIGIN",
        help="Origin of pages in browsers that may use the API, such as https://chat.example.com; * allows "
        "all. Repeat it for several.  [default: those on loopback, which are always allowed]",
    ),
    click.option(
        "--kv-cache-mb",
        type=COUNT,
        help="Most memory for the attention's keys and values, in MB (2^20 bytes).  [default: 512]",
    ),
    _MEMORY_BUDGET,
    _IDLE_TIMEOUT,
    click.option(
        "--threads", type=COUNT, help="Compute threads of the dense part.  [default: by the model's size]"
    ),
    click.option(
        "--sampling-defaults",
        type=click.Choice(SAMPLING_SOURCES),
        help="Where temperature, top_p, top_k, min_p and penalties come from if a request names none: "
        "model is its generation_config.json; none changes no probability.  [default: model]",
    ),
    _OPEN,
    click.option(
        "--strict-fields/--lenient-fields",
        default=None,
        help="Whether to refuse fields of requests that have no effect here, or to ignore them and name each "
        "once in the log.  [default: lenient]",
    ),
    database_option,
    click.option(
        "--batch-storage",
        type=BYTES_OR_ZERO,
        metavar="BYTES",
        help="Most disk space for files and batches, beside the database; 0 switches them off.  "
        "[default: 1GB]",
    ),
    click.option(
        "--log-level", type=click.Choice(LOG_LEVELS), help="Least severe level to log.  [default: info]"
    ),
)


def client_key(file: Path | None) -> str | None:
    """The key in the file of `key_option`, or else in the environment, if there is one."""
    from control_plane.tenancy.keys import checked_key, read_key

    if file is not None:
        return read_key(file)
    key = os.environ.get(KEY_VARIABLE)
    return checked_key(key, f"the key in ${KEY_VARIABLE}") if key else None

"""Options that several commands share."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from control_plane.config import LOG_LEVELS
from control_plane.errors import ConfigError
from control_plane.gateway_access import GatewayAccess, parse_url, read_credentials
from control_plane.quantities import parse_bytes, parse_seconds

DEFAULT_GATEWAY = "http://127.0.0.1:8080"
DEFAULT_SERVER = "http://127.0.0.1:8000"


class _Quantity(click.ParamType):
    """An amount with a unit."""

    def __init__(self, name: str, parse: Callable[[str], float]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return self._parse(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class Listed(click.ParamType):
    """Several values, with commas between them."""

    name = "LIST"

    def __init__(self, read: Callable[[str], Any]) -> None:
        """`read` makes one value of its text, or raises `ConfigError` or ValueError."""
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


PARTITION = click.Path(exists=True, file_okay=False, path_type=Path)
PORT = click.IntRange(0, 65535)
COUNT = click.IntRange(1)
BYTES = _Quantity("bytes", parse_bytes)
SECONDS = _Quantity("duration", parse_seconds)
Command = TypeVar("Command", bound=Callable[..., Any])


def gateway_options(command: Command) -> Command:
    """Where the gateways are, and who we are there: `gateway_access` makes one value of it."""
    options = [
        click.option(
            "--gateway",
            "gateway_urls",
            multiple=True,
            default=[DEFAULT_GATEWAY],
            envvar="OPENFAAS_URL",
            show_default=True,
            show_envvar=True,
            help="Address of the OpenFaaS gateway; given again, the functions are spread over several.",
        ),
        click.option(
            "--gateway-user", default="admin", show_default=True, help="User for the gateway's basic auth."
        ),
        click.option(
            "--gateway-password-file",
            "gateway_password_files",
            multiple=True,
            type=click.Path(dir_okay=False, path_type=Path),
            help="File with the gateway's password, one for all or one for each in their order; without it, "
            "calls go without basic auth.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def gateway_access(
    gateway_urls: Sequence[str], gateway_user: str, gateway_password_files: Sequence[Path]
) -> list[GatewayAccess]:
    """What `gateway_options` have been given. Raises `ConfigError`."""
    urls = [parse_url(url) for url in gateway_urls]
    if len({url.origin() for url in urls}) < len(urls):
        raise ConfigError("--gateway: the same address is there twice")
    files: list[Path | None] = list(gateway_password_files) or [None]
    if len(files) not in (1, len(urls)):
        raise ConfigError(f"--gateway-password-file: {len(files)} files for {len(urls)} gateways")
    credentials = [read_credentials(gateway_user, file) for file in files]
    return [GatewayAccess(*each) for each in zip(urls, credentials * (len(urls) // len(files)), strict=True)]


image_prefix_option = click.option(
    "--image-prefix",
    default="",
    metavar="REGISTRY/",
    help="Registry that the image is in, such as host:5000/.",
)


def whole_seconds(duration: float | None) -> int | None:
    """One at least, since a function that ended at once would be of no use."""
    return None if duration is None else max(1, round(duration))


idle_exit_option = click.option(
    "--idle-exit",
    type=SECONDS,
    metavar="DURATION",
    help="Have a function's process end after so long without a call, for gateways that do not scale to zero "
    "but start a function that has ended with its next call. Read docs/deploy-faasd.md on licences first.  "
    "[default: never]",
)


def database_option(command: Command) -> Command:
    """Where tenants and usage are; None leaves it to the config file or the default."""
    return click.option(
        "--database",
        metavar="FILE|URL",
        help="Where tenants and usage are: a file, or a PostgreSQL database that several servers share "
        "(postgresql://user@host/name).  [default: $FAASMOE_DATABASE, or "
        "faasmoe/faasmoe.db in $XDG_STATE_HOME or ~/.local/state]",
    )(command)


def serve_options(command: Command) -> Command:
    """The control plane's own settings; None leaves them to the config file or the default."""
    options = [
        click.option(
            "--config",
            "config_file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="YAML file with settings; options given here override it.",
        ),
        click.option("--host", help="Address to listen on.  [default: 127.0.0.1]"),
        click.option("--port", type=PORT, help="Port to listen on.  [default: 8000]"),
        click.option(
            "--kv-cache-mb", type=click.IntRange(1), help="Most memory for keys and values.  [default: 512]"
        ),
        click.option(
            "--memory-budget",
            type=BYTES,
            metavar="BYTES",
            help="Most memory for control plane and functions together, such as 6GB (10^9 bytes each), 6GiB "
            "or 500MB: experts are then read from disk when they are needed, and the busiest functions hold "
            "most. Too little is refused with the least that would do.  [default: no limit]",
        ),
        click.option(
            "--idle-timeout",
            type=SECONDS,
            metavar="DURATION",
            help="How long after its last call a function goes to zero, such as 60s, 15m or 60; where the "
            "gateway does not scale to zero, it drops its weights. The next prompt wakes it.  [default: 15m]",
        ),
        click.option(
            "--threads",
            type=click.IntRange(1),
            help="Compute threads of the dense part.  [default: by the model's size]",
        ),
        click.option(
            "--open/--keys-only",
            default=None,
            help="Whether requests without a key are served, too, as the tenant that their user field names "
            "(on loopback only).  [default: keys only; open for `up` on loopback]",
        ),
        database_option,
        click.option(
            "--log-level", type=click.Choice(LOG_LEVELS), help="Least of what is logged.  [default: info]"
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def server_option(command: Command) -> Command:
    """Where the control plane is."""
    return click.option(
        "--server",
        default=DEFAULT_SERVER,
        envvar="FAASMOE_URL",
        show_default=True,
        show_envvar=True,
        help="Address of the control plane.",
    )(command)

"""`faasmoe gateway`, `serve` and `up`: the commands that run until Ctrl-C."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
from yarl import URL

from control_plane.cli.models import local_model
from control_plane.cli.options import (
    FOLDER,
    PORT,
    SECONDS,
    SECRET_FILE,
    function_secret_option,
    gateway_options,
    image_prefix_option,
    serve_options,
)
from control_plane.cli.tenancy.database import opened_store
from control_plane.config import ServeConfig
from control_plane.faas.gateway_access import GatewayAccess, known_function_secret, read_credentials
from control_plane.signals import serve_until_signal, sigterm_exits
from functions.contract.secret import FunctionSecret


@click.command()
@click.argument("partition", type=FOLDER)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=PORT, default=8080, show_default=True, help="Port to listen on; 0 takes a free one."
)
@click.option("--user", default="admin", show_default=True, help="User for basic authentication.")
@click.option(
    "--password-file",
    type=SECRET_FILE,
    help="File with the password for calls to /system.  [default: no authentication]",
)
@click.option(
    "--idle-after",
    type=SECONDS,
    metavar="DURATION",
    default="15m",
    show_default=True,
    help="Time without a call, such as 60s, 15m or 60 (seconds), before a function is scaled to zero.",
)
@click.option(
    "--emulate",
    type=click.Choice(["faasd"]),
    help="Gateway whose behaviour is emulated. faasd: 15 functions, as in its community edition, always one "
    "replica, status 500 while a function starts, chunked bodies, and functions that vanish without a reset "
    "when they are removed or updated.  [default: none]",
)
def gateway(
    partition: Path,
    host: str,
    port: int,
    user: str,
    password_file: Path | None,
    idle_after: float,
    emulate: str | None,
) -> None:
    """Run the embedded gateway for the PARTITION folder.

    It has the OpenFaaS API, and runs functions as processes. faas-cli works with it as with any other
    gateway. It runs only this partition's image. The functions end with the gateway; with a fixed port, it
    has them again when it is started for the same partition and port.

    \b
      faasmoe gateway OUT_DIR --port 8080 --password-file password
    """
    from control_plane.gateway import embedded_gateway, gateway_folder
    from control_plane.gateway.provider.emulation import EMULATED, OWN

    credentials = read_credentials(user, password_file)
    behaviour = EMULATED[emulate] if emulate else OWN
    state = gateway_folder(partition, port) if port else None
    server = embedded_gateway(partition, host, port, credentials, idle_after, behaviour, state)
    serve_until_signal("gateway", server)


@click.command()
@click.argument("partition", type=FOLDER)
@gateway_options
@image_prefix_option
@function_secret_option
@serve_options
def serve(
    partition: Path,
    gateways: Sequence[GatewayAccess],
    image_prefix: str,
    function_secret_file: Path | None,
    config_file: Path | None,
    **overrides: Any,
) -> None:
    """Serve the model in the PARTITION folder.

    Its functions are deployed on one or several gateways. The API is OpenAI's, at http://HOST:PORT/v1.
    Clients need a tenant's key: see `faasmoe tenants add`. If one of several gateways stays unreachable,
    its functions are deployed on the others.

    \b
      faasmoe tenants add acme
      faasmoe serve OUT_DIR --gateway http://box:8080 --gateway-password-file password
    """
    from control_plane.observability.logs import configure

    secret_file = str(function_secret_file) if function_secret_file else None
    given = {"image_prefix": image_prefix or None, "function_secret_file": secret_file}
    config = ServeConfig.load(config_file, {**overrides, **given})
    configure(config.log_level)
    named = Path(config.function_secret_file) if config.function_secret_file else None
    secret = known_function_secret(named)
    serve_until_signal("serving", _serving(partition, config, gateways, secret))


@click.command()
@click.argument("model", metavar="MODEL")
@serve_options
@click.option(
    "--gateway-port",
    type=PORT,
    default=8080,
    show_default=True,
    help="Port of the gateway; 0 takes a free one.",
)
def up(model: str, config_file: Path | None, gateway_port: int, **overrides: Any) -> None:
    """Run everything for MODEL until Ctrl-C.

    That is the embedded gateway, the functions and the control plane. MODEL is the folder of a partition or
    of a checkpoint, or a GGUF file, or the id of a model on the hub, such as org/name, which is downloaded as
    `faasmoe pull` does. A checkpoint is first partitioned into the folder MODEL.faasmoe; that of a model on
    the hub goes into $XDG_CACHE_HOME/faasmoe or ~/.cache/faasmoe. On loopback, everyone on this machine is
    served, with or without a key.

    \b
      faasmoe up models/demo
      faasmoe up models/demo --memory-budget 1GB --idle-timeout 60s
      faasmoe up org/name:Q4_K_M --memory-budget 8GB
    """
    from control_plane.observability.logs import configure
    from control_plane.up import partition_of, running

    config = ServeConfig.load(config_file, overrides, open_on_loopback=True)
    configure(config.log_level)
    with sigterm_exits():
        local = local_model(model, takes_partition=True)
        folder = partition_of(local.path, click.echo, local.name, local.partition)
    serve_until_signal("serving", running(folder, config, gateway_port, click.echo))


@asynccontextmanager
async def _serving(
    partition: Path, config: ServeConfig, gateways: Sequence[GatewayAccess], secret: FunctionSecret | None
) -> AsyncIterator[URL]:
    """Run the control plane, and print what is missing before it can serve requests."""
    from control_plane.app import control_plane
    from control_plane.deployment.deploy import missing_functions
    from control_plane.partition.manifest import Manifest

    async with control_plane(partition, config, gateways, secret) as address:
        if missing := await missing_functions(Manifest.load(partition), gateways):
            click.echo(f"not deployed yet: {', '.join(missing)}", err=True)
        if not config.open and not _has_tenants(config.database):
            click.echo(
                "nobody has a key yet: `faasmoe tenants add NAME` adds a tenant and prints its key",
                err=True,
            )
        yield address


def _has_tenants(database: str) -> bool:
    with opened_store(database or None, create=True) as store:
        return bool(store.list())

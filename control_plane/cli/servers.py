"""`faasmoe gateway`, `deploy`, `serve` and `up`: what runs."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import click

from control_plane.cli.options import (
    PARTITION,
    PORT,
    gateway_access,
    gateway_options,
    idle_exit_option,
    image_prefix_option,
    serve_options,
    whole_seconds,
)
from control_plane.cli.tenants import opened_store
from control_plane.signals import serve_until_signal, sigterm_exits


@click.command()
@click.argument("partition", type=PARTITION)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=PORT, default=8080, show_default=True, help="Port to listen on; 0 takes a free one."
)
@click.option("--user", default="admin", show_default=True, help="User for basic auth.")
@click.option(
    "--password-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with the password that /system calls need; without it they need none.",
)
@click.option(
    "--idle-after",
    type=click.FloatRange(0, min_open=True),
    default=900.0,
    show_default=True,
    help="Seconds without a call before a function goes to zero; it sees a busy one's calls every 10 s.",
)
@click.option(
    "--emulate",
    type=click.Choice(["faasd"]),
    help="Behave as faasd's community edition: 15 functions, none of which goes to zero, status 500 while "
    "one starts, bodies in chunks.",
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
    """Run the embedded gateway: the OpenFaaS API over functions of the PARTITION folder, as processes.

    faas-cli speaks to it as to any other gateway. It has one image, that of this partition. Functions
    live as long as the gateway does.
    """
    from control_plane.gateway import embedded_gateway
    from control_plane.gateway.emulation import EMULATED, OWN
    from control_plane.gateway_access import read_credentials

    credentials = read_credentials(user, password_file)
    behaviour = EMULATED[emulate] if emulate else OWN
    serve_until_signal("gateway", embedded_gateway(partition, host, port, credentials, idle_after, behaviour))


@click.command()
@click.argument("partition", type=PARTITION)
@gateway_options
@image_prefix_option
@idle_exit_option
@click.option("--prune", is_flag=True, help="Remove functions of this model that are not in the partition.")
@click.option("--roll-back", is_flag=True, help="Change all back when something fails.")
def deploy(
    partition: Path,
    gateway_urls: Sequence[str],
    gateway_user: str,
    gateway_password_files: Sequence[Path],
    image_prefix: str,
    idle_exit: float | None,
    prune: bool,
    roll_back: bool,
) -> None:
    """Deploy the functions of the PARTITION folder to a gateway, or spread them over several.

    Again, it updates those that have changed. Functions stay on the gateway that they are on.
    """
    from control_plane.deployment.deploy import deploy_all
    from control_plane.faas.client import Gateway
    from control_plane.partition.manifest import Manifest

    access = gateway_access(gateway_urls, gateway_user, gateway_password_files)

    async def run() -> None:
        manifest = Manifest.load(partition)
        async with AsyncExitStack() as stack:
            gateways = [await stack.enter_async_context(Gateway.connect(*each)) for each in access]
            changes = deploy_all(
                manifest,
                gateways,
                image_prefix,
                idle_exit=whole_seconds(idle_exit),
                prune=prune,
                roll_back=roll_back,
            )
            async for change in changes:
                where = f" on {change.gateway}" if len(gateways) > 1 else ""
                click.echo(f"{change.done} {change.function}{where}")

    asyncio.run(run())


@click.command()
@click.argument("partition", type=PARTITION)
@gateway_options
@image_prefix_option
@serve_options
def serve(
    partition: Path,
    gateway_urls: Sequence[str],
    gateway_user: str,
    gateway_password_files: Sequence[Path],
    image_prefix: str,
    config_file: Path | None,
    **overrides: Any,
) -> None:
    """Serve the model of the PARTITION folder, whose functions are deployed on a gateway, or on several.

    The API is OpenAI's, on http://HOST:PORT/v1. Clients need a tenant's key, of `faasmoe tenants add`. Of
    several gateways, one that is away for long has its functions deployed on the others.
    """
    from control_plane.app import control_plane
    from control_plane.config import ServeConfig
    from control_plane.deployment.deploy import missing_functions
    from control_plane.observability.logs import configure
    from control_plane.partition.manifest import Manifest

    config = ServeConfig.load(config_file, {**overrides, "image_prefix": image_prefix or None})
    configure(config.log_level)
    access = gateway_access(gateway_urls, gateway_user, gateway_password_files)

    @asynccontextmanager
    async def checked() -> AsyncIterator[object]:
        async with control_plane(partition, config, access) as address:
            if missing := await missing_functions(Manifest.load(partition), access):
                click.echo(f"not deployed yet: {', '.join(missing)}", err=True)
            if not config.open and not _has_tenants(config.database):
                click.echo(
                    "nobody has a key yet: `faasmoe tenants add NAME` adds a tenant and prints its key",
                    err=True,
                )
            yield address

    serve_until_signal("serving", checked())


@click.command()
@click.argument("model", type=PARTITION)
@serve_options
@click.option(
    "--gateway-port",
    type=PORT,
    default=8080,
    show_default=True,
    help="Port of the gateway; 0 takes a free one.",
)
def up(model: Path, config_file: Path | None, gateway_port: int, **overrides: Any) -> None:
    """Run everything for MODEL, until Ctrl-C: gateway, functions and control plane.

    MODEL is a partition, or a checkpoint, which is then partitioned beside it into MODEL.faasmoe. On
    loopback, anybody on this machine is served, with or without a key.
    """
    from control_plane.config import ServeConfig
    from control_plane.observability.logs import configure
    from control_plane.up import partition_of, running

    config = ServeConfig.load(config_file, overrides, open_on_loopback=True)
    configure(config.log_level)
    with sigterm_exits():
        folder = partition_of(model, click.echo)
    serve_until_signal("serving", running(folder, config, gateway_port, click.echo))


def _has_tenants(database: str) -> bool:
    with opened_store(database or None, make=True) as store:
        return bool(store.list())

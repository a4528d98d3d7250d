"""`faasmoe tenants keys`: add, list and revoke keys of a tenant."""

import json
import time
from typing import Any

import click

from control_plane.cli.options import database_option, json_option
from control_plane.cli.tenancy.database import KEY_NAME, NAME, opened_store
from control_plane.cli.tenancy.times import Expiry, local_time, utc_time
from control_plane.formatting import table
from control_plane.tenancy.keys import KeyRecord


@click.group()
def keys() -> None:
    """Add, list and revoke a tenant's keys.

    Any of them gives the tenant's rights and limits. `faasmoe tenants add` makes the first, named main.

    \b
      faasmoe tenants keys add acme --name laptop --expires 30d
      faasmoe tenants keys revoke acme laptop
    """


@keys.command()
@click.argument("tenant", type=NAME)
@click.option(
    "--name", type=KEY_NAME, help="The key's name, unique among the tenant's.  [default: key-1, key-2, ...]"
)
@click.option(
    "--expires",
    type=Expiry(),
    help="When the key ends: after a duration such as 12h or 30d, or at a local date or time such as "
    "2027-01-01.  [default: never]",
)
@database_option
def add(tenant: str, name: str | None, expires: float | None, database: str | None) -> None:
    """Print an additional key for TENANT. The key is not stored and cannot be printed again."""
    with opened_store(database) as store:
        if name is None:
            taken = {key.name for key in store.keys(tenant)}
            name = next(free for number in range(1, len(taken) + 2) if (free := f"key-{number}") not in taken)
        key = store.add_key(tenant, name, expires)
    until = "" if expires is None else f", valid until {local_time(expires)}"
    click.echo(f"this is the key {name} of {tenant}{until}, which is not shown again:", err=True)
    click.echo(key)


@keys.command("list")
@click.argument("tenant", type=NAME)
@json_option
@database_option
def list_(tenant: str, as_json: bool, database: str | None) -> None:
    """List the names of TENANT's keys, including expired ones. A dash means never."""
    with opened_store(database) as store:
        found = store.keys(tenant)
    if as_json:
        click.echo(json.dumps([_key_object(key) for key in found], indent=2))
        return
    now = time.time()
    rows = [
        [
            key.name,
            local_time(key.created),
            "-" if key.expires is None else local_time(key.expires),
            "expired" if key.has_expired(now) else "valid",
        ]
        for key in found
    ]
    for line in table(["key", "created", "expires", "state"], rows):
        click.echo(line)


@keys.command()
@click.argument("tenant", type=NAME)
@click.argument("name", type=KEY_NAME)
@database_option
def revoke(tenant: str, name: str, database: str | None) -> None:
    """Refuse TENANT's key NAME from now on, and delete it.

    The main key comes back when a server starts whose config file has a key_file for the tenant.
    """
    with opened_store(database) as store:
        store.revoke_key(tenant, name)


def _key_object(key: KeyRecord) -> dict[str, Any]:
    return {
        "name": key.name,
        "created": utc_time(key.created),
        "expires": None if key.expires is None else utc_time(key.expires),
    }

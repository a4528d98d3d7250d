"""`faasmoe tenants`: who has a key, and for how much."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import click

from control_plane.cli.options import COUNT, Command, database_option
from control_plane.cli.tables import tenant_lines, tenant_object
from control_plane.errors import ConfigError
from control_plane.tenancy.storage.database import check_exists, database_address
from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.tenants import BOUNDS, Limits, check_name

UNLIMITED = "none"


class _Name(click.ParamType):
    """A tenant's name."""

    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            check_name(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        return value


class _Bound(click.ParamType):
    """A whole number above zero, or `none`."""

    name = "bound"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        return value if value == UNLIMITED else int(COUNT(value, param, ctx))


NAME = _Name()
BOUND = _Bound()


def limit_options(command: Command) -> Command:
    """A tenant's limits; None where an option is not given."""
    options = [
        click.option(
            "--weight", type=float, metavar="X", help="Share when tenants compete: 2 gets twice what 1 gets."
        ),
        click.option("--rpm", type=BOUND, metavar="N|none", help="Most requests per minute."),
        click.option(
            "--tpm", type=BOUND, metavar="N|none", help="Most tokens per minute, of prompts and answers."
        ),
        click.option("--max-concurrency", type=BOUND, metavar="N|none", help="Most requests at once."),
        click.option(
            "--max-context", type=BOUND, metavar="N|none", help="Most tokens of one prompt and its answer."
        ),
        click.option("--max-output", type=BOUND, metavar="N|none", help="Most tokens of one answer."),
        click.option(
            "--operator/--no-operator", default=None, help="Whether its key may read all tenants' metrics."
        ),
        database_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def tenants() -> None:
    """Add, limit and remove tenants, who each have a key.

    A running server with the same database follows at the next request. Limits are unlimited unless given;
    keys are stored as hashes, and printed once.

    \b
      faasmoe tenants add acme --weight 2 --rpm 60 --tpm 20000 --max-concurrency 8
      faasmoe tenants set acme --rpm none
      faasmoe usage --tenant acme --since 24h
    """


@tenants.command()
@click.argument("name", type=NAME)
@limit_options
def add(name: str, operator: bool | None, database: str | None, **limits: Any) -> None:
    """Add the tenant NAME, and print its key: it is not stored, and cannot be printed again.

    NAME has up to 64 letters, digits, dots, dashes and underscores.
    """
    wanted = replace(Limits(), **_given(limits))
    with opened_store(database, make=True) as store:
        key = store.add(name, wanted, bool(operator))
    click.echo(f"added {name}; this is its key, which is not shown again:", err=True)
    click.echo(key)


@tenants.command("list")
@json_option
@database_option
def list_(as_json: bool, database: str | None) -> None:
    """List all tenants with their limits."""
    with opened_store(database) as store:
        found = store.list()
    if as_json:
        click.echo(json.dumps([tenant_object(tenant) for tenant in found], indent=2))
        return
    for line in tenant_lines(found):
        click.echo(line)


@tenants.command()
@click.argument("name", type=NAME)
@json_option
@database_option
def show(name: str, as_json: bool, database: str | None) -> None:
    """Show the tenant NAME."""
    with opened_store(database) as store:
        tenant = store.get(name)
    for line in [json.dumps(tenant_object(tenant), indent=2)] if as_json else tenant_lines([tenant]):
        click.echo(line)


@tenants.command("set")
@click.argument("name", type=NAME)
@limit_options
def set_(name: str, operator: bool | None, database: str | None, **limits: Any) -> None:
    """Change limits of the tenant NAME: those given, and no others. `none` removes one."""
    changes = _given(limits)
    if not changes and operator is None:
        raise click.UsageError("nothing to set: give at least one limit")
    with opened_store(database) as store:
        tenant = store.get(name)
        store.update(
            name, replace(tenant.limits, **changes), tenant.operator if operator is None else operator
        )


@tenants.command()
@click.argument("name", type=NAME)
@database_option
def rotate_key(name: str, database: str | None) -> None:
    """Print a new key for the tenant NAME; the one before is refused from now on.

    Where the server's config file has a key_file for it, that key counts again when the server starts.
    """
    with opened_store(database) as store:
        key = store.rotate_key(name)
    click.echo(f"this is the new key of {name}, which is not shown again:", err=True)
    click.echo(key)


@tenants.command()
@click.argument("name", type=NAME)
@database_option
def remove(name: str, database: str | None) -> None:
    """Remove the tenant NAME, at once; what it has used stays in `faasmoe usage`.

    A tenant that the server's config file declares comes back when the server starts.
    """
    with opened_store(database) as store:
        store.remove(name)


@contextmanager
def opened_store(database: str | None, make: bool = False) -> Iterator[TenantStore]:
    """The store of an option, or the default one; where there is none, it is made or `ConfigError` raised."""
    if database == "":
        raise click.UsageError("--database: a file's name cannot be empty")
    path = database_address(database or "")
    if not make:
        check_exists(path)
    with TenantStore.open(path) as store:
        yield store


def _given(limits: dict[str, Any]) -> dict[str, Any]:
    """The limits that were given, as `Limits` has them."""
    given = {name: value for name, value in limits.items() if value is not None}
    return {name: None if name in BOUNDS and value == UNLIMITED else value for name, value in given.items()}

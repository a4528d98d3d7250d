"""`faasmoe tenants`: add, limit and remove tenants."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import click

from control_plane.cli.options import COUNT, database_option, json_option, option_group
from control_plane.cli.tenancy.database import NAME, opened_store
from control_plane.cli.tenancy.keys import keys
from control_plane.cli.tenancy.times import local_time, utc_time
from control_plane.formatting import table
from control_plane.tenancy.keys import MAIN
from control_plane.tenancy.tenants import BOUNDS, BUDGETS, Limits, Tenant
from control_plane.tenancy.usage import Spent

UNLIMITED = "none"


class _Bound(click.ParamType[str | int]):
    """A whole number above zero, or `none`."""

    name = "bound"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        return value if value == UNLIMITED else int(COUNT(value, param, ctx))


_bound_option = partial(click.option, type=_Bound(), metavar="N|none")

# An option that is not given is None. `add` then takes the default, and `set` keeps the current value.
limit_options = option_group(
    click.option(
        "--weight",
        type=float,
        metavar="X",
        help="Share when tenants compete, from 0.001 to 1000: 2 gets twice the service of 1.",
    ),
    _bound_option("--rpm", help="Most requests per minute."),
    _bound_option("--tpm", help="Most tokens per minute, of prompts and answers together."),
    _bound_option("--max-concurrency", help="Most requests at the same time."),
    _bound_option("--max-context", help="Most tokens of one prompt and its answer together."),
    _bound_option("--max-output", help="Most tokens of one answer."),
    _bound_option("--tokens-per-day", help="Most tokens per day (UTC), of prompts and answers together."),
    _bound_option(
        "--tokens-per-month", help="Most tokens per calendar month (UTC), of prompts and answers together."
    ),
    click.option(
        "--operator/--no-operator",
        default=None,
        help="Whether the tenant's key may read the metrics of all tenants.",
    ),
    database_option,
)


@click.group()
def tenants() -> None:
    """Add, limit and remove tenants, each of whom has one key or several.

    A running server with the same database applies a change from the next request on. A new tenant has weight
    1, no limits and no operator's rights, unless options say otherwise. A key is printed once; the database
    has only its hash.

    \b
      faasmoe tenants add acme --weight 2 --rpm 60 --tpm 20000 --max-concurrency 8
      faasmoe tenants set acme --rpm none
      faasmoe usage --tenant acme --since 24h
    """


@tenants.command()
@click.argument("name", type=NAME)
@limit_options
def add(name: str, operator: bool | None, database: str | None, **limits: Any) -> None:
    """Add the tenant NAME and print its key. The key is not stored and cannot be printed again.

    NAME has up to 64 letters, digits, dots, dashes and underscores.

    \b
      faasmoe tenants add acme --weight 2 --rpm 60 > acme.key
    """
    wanted = replace(Limits(), **_given(limits))
    with opened_store(database, create=True) as store:
        key = store.add(name, wanted, bool(operator))
    click.echo(f"added {name}; this is its key, which is not shown again:", err=True)
    click.echo(key)


@tenants.command("list")
@json_option
@database_option
def list_(as_json: bool, database: str | None) -> None:
    """List all tenants with their limits. A dash means no limit; in JSON, null does.

    Limits per day and month are shown with the tokens used: USED/LIMIT.
    """
    with opened_store(database) as store:
        found = [(tenant, store.spent(tenant.name)) for tenant in store.list()]
    if as_json:
        click.echo(json.dumps([tenant_object(*each) for each in found], indent=2))
        return
    for line in tenant_lines(found):
        click.echo(line)


@tenants.command()
@click.argument("name", type=NAME)
@json_option
@database_option
def show(name: str, as_json: bool, database: str | None) -> None:
    """Show the limits of the tenant NAME, as `faasmoe tenants list` does."""
    with opened_store(database) as store:
        found = store.get(name), store.spent(name)
    for line in [json.dumps(tenant_object(*found), indent=2)] if as_json else tenant_lines([found]):
        click.echo(line)


@tenants.command("set")
@click.argument("name", type=NAME)
@limit_options
def set_(name: str, operator: bool | None, database: str | None, **limits: Any) -> None:
    """Change limits of the tenant NAME. Limits without an option do not change; `none` removes a limit.

    \b
      faasmoe tenants set acme --rpm none --max-output 512
    """
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
    """Print a new main key for the tenant NAME, and refuse the previous one from now on.

    Keys that `faasmoe tenants keys add` made stay valid. If the server's config file has a key_file for the
    tenant, the key in that file is valid again when the server starts.
    """
    with opened_store(database) as store:
        key = store.rotate_key(name)
        others = [other.name for other in store.keys(name) if other.name != MAIN]
    if others:
        click.echo(f"other keys of {name} stay as they are: {', '.join(others)}", err=True)
    click.echo(f"this is the new key of {name}, which is not shown again:", err=True)
    click.echo(key)


@tenants.command()
@click.argument("name", type=NAME)
@database_option
def remove(name: str, database: str | None) -> None:
    """Remove the tenant NAME at once. `faasmoe usage` still shows what it has used.

    A tenant that the server's config file declares is added again when the server starts.
    """
    with opened_store(database) as store:
        store.remove(name)


def tenant_lines(tenants: Sequence[tuple[Tenant, Spent]]) -> Iterator[str]:
    """Format tenants as a table, with the tokens used of their budgets. A dash means no limit."""
    yield from table(
        ["tenant", "weight", *BOUNDS, "operator", "created"], [_tenant_row(*each) for each in tenants]
    )


def tenant_object(tenant: Tenant, spent: Spent) -> dict[str, Any]:
    """A tenant as an object for JSON. None means no limit."""
    return {
        "name": tenant.name,
        **asdict(tenant.limits),
        "tokens_today": spent.day,
        "tokens_this_month": spent.month,
        "operator": tenant.operator,
        "created": utc_time(tenant.created),
    }


def _tenant_row(tenant: Tenant, spent: Spent) -> list[str]:
    used = dict(zip(BUDGETS, (f"{spent.day}/", f"{spent.month}/"), strict=True))
    bounds = [(used.get(name, ""), getattr(tenant.limits, name)) for name in BOUNDS]
    return [
        tenant.name,
        f"{tenant.limits.weight:g}",
        *("-" if bound is None else f"{before}{bound}" for before, bound in bounds),
        "yes" if tenant.operator else "no",
        local_time(tenant.created),
    ]


def _given(limits: dict[str, Any]) -> dict[str, Any]:
    """The limits whose options were given, as fields of `Limits`."""
    given = {name: value for name, value in limits.items() if value is not None}
    return {name: None if name in BOUNDS and value == UNLIMITED else value for name, value in given.items()}


tenants.add_command(keys)

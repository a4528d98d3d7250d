"""`faasmoe usage`: show what tenants have used."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields

import click

from control_plane.cli.options import database_option, json_option
from control_plane.cli.tenancy.database import NAME, opened_store
from control_plane.cli.tenancy.times import Since
from control_plane.formatting import table
from control_plane.tenancy.usage import Usage


@click.command()
@click.option(
    "--tenant", type=NAME, help="Name of the only tenant to show, even a removed one.  [default: all]"
)
@click.option(
    "--since",
    type=Since(),
    help="Start of the period: an age such as 30m, 24h or 7d, a local date or time such as 2026-07-01, or "
    "today or month, which are those of budgets (in UTC).  [default: the first use]",
)
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, for a spreadsheet or a bill.")
@database_option
def usage(tenant: str | None, since: float | None, as_json: bool, as_csv: bool, database: str | None) -> None:
    """Show what each tenant has used.

    That is requests, tokens, and its share of the experts' work. Usage is recorded per minute. An invocation
    that computes rows for several tenants is divided among them, and so are its seconds. Tenants that have
    used nothing are left out.

    \b
      faasmoe usage --since 24h
      faasmoe usage --tenant acme --since 2026-07-01 --csv > july.csv
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    with opened_store(database) as store:
        found = store.usage(tenant, since)
        if tenant is not None and not found and not store.usage(tenant, None):
            # A tenant that exists may have used nothing. A name that does not exist is probably misspelt.
            store.get(tenant)
    if as_json:
        click.echo(json.dumps([asdict(of) for of in found], indent=2))
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, [field.name for field in fields(Usage)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(of) for of in found)
    else:
        for line in usage_lines(found):
            click.echo(line)


def usage_lines(found: Sequence[Usage]) -> Iterator[str]:
    """Format usage as a table."""
    header = ["tenant", "requests", "prompt tokens", "generated tokens", "invocations", "expert seconds"]
    yield from table(header, [_usage_row(of) for of in found])


def _usage_row(of: Usage) -> list[str]:
    return [
        of.tenant,
        str(of.requests),
        str(of.prompt_tokens),
        str(of.generated_tokens),
        f"{of.expert_invocations:.1f}",
        f"{of.expert_seconds:.3f}",
    ]

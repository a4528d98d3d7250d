"""`faasmoe usage`: what is accounted to tenants."""

import csv
import json
import re
import sys
import time
from dataclasses import asdict, fields
from datetime import datetime

import click

from control_plane.cli.options import database_option
from control_plane.cli.tables import usage_lines
from control_plane.cli.tenants import NAME, opened_store
from control_plane.tenancy.usage import Usage

_UNIT_SECONDS = {"m": 60, "h": 3600, "d": 86400}


class _Since(click.ParamType):
    """An age such as 30m, 24h and 7d, or a date or time in ISO 8601; Unix time."""

    name = "AGE|DATE"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        if age := re.fullmatch(r"([0-9]{1,9})([mhd])", value):
            return max(0.0, time.time() - int(age[1]) * _UNIT_SECONDS[age[2]])
        try:
            return max(0.0, datetime.fromisoformat(value).timestamp())
        except (ValueError, OverflowError, OSError):
            self.fail(f"{value!r} is neither an age such as 30m, 24h or 7d, nor a date", param, ctx)


@click.command()
@click.option("--tenant", type=NAME, help="Only this tenant's, who may have been removed.")
@click.option(
    "--since",
    type=_Since(),
    help="Only from then on: an age such as 30m, 24h or 7d, or a local date or time such as 2026-07-01.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, for a spreadsheet or a bill.")
@database_option
def usage(tenant: str | None, since: float | None, as_json: bool, as_csv: bool, database: str | None) -> None:
    """Show what each tenant has used: requests, tokens, and its share of the experts' work.

    Usage is kept by the minute. An invocation that had rows of several tenants is shared out among them,
    and so are its seconds. Tenants that have used nothing are left out.
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    with opened_store(database) as store:
        found = store.usage(tenant, since)
        if tenant is not None and not found and not store.usage(tenant, None):
            # Whoever has never been here was probably spelt wrong.
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

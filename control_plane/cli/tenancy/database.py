"""Names and the database, for all commands about tenants."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from control_plane.errors import ConfigError
from control_plane.tenancy.keys import check_key_name
from control_plane.tenancy.storage.database import check_exists, database_address
from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.tenants import check_name


class _Name(click.ParamType[str]):
    """A name that `check` accepts."""

    name = "name"

    def __init__(self, check: Callable[[str], None]) -> None:
        self._check = check

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            self._check(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        return value


NAME = _Name(check_name)
KEY_NAME = _Name(check_key_name)


@contextmanager
def opened_store(database: str | None, create: bool = False) -> Iterator[TenantStore]:
    """Open the database in the option's value, or the default one if that is None.

    Raises `ConfigError` if it does not exist, unless `create` is set.
    """
    if database == "":
        raise click.UsageError("--database: a file's name cannot be empty")
    address = database_address(database or "")
    if not create:
        check_exists(address)
    with TenantStore.open(address) as store:
        yield store

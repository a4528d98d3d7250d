"""The address of the database of tenants."""

from pathlib import Path

import pytest

from control_plane.errors import ConfigError
from control_plane.tenancy.storage.database import database_address


@pytest.mark.parametrize(
    ("setting", "environment", "path"),
    [
        ("/a/b.db", {"FAASMOE_DATABASE": "/c.db"}, "/a/b.db"),
        ("~/b.db", {}, "HOME/b.db"),
        ("", {"FAASMOE_DATABASE": "/c.db", "XDG_STATE_HOME": "/state"}, "/c.db"),
        ("", {"FAASMOE_DATABASE": "", "XDG_STATE_HOME": "/state"}, "/state/faasmoe/faasmoe.db"),
        ("", {}, "HOME/.local/state/faasmoe/faasmoe.db"),
    ],
)
def test_default_addresses_of_the_database(setting: str, environment: dict[str, str], path: str) -> None:
    assert database_address(setting, environment) == Path(path.replace("HOME", str(Path.home())))


def test_the_home_folder_of_an_unknown_user() -> None:
    with pytest.raises(ConfigError, match="database: "):
        database_address("~no-such-user/b.db", {})

"""`faasmoe tenants keys`, and limits per day and month on the command line."""

import json
import time
from pathlib import Path
from uuid import uuid4

import pytest

from control_plane.errors import InvalidApiKey
from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.usage import Booking, Entry
from tests.support.command_line import error_line, faasmoe, usage_error


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "faasmoe.db"
    assert faasmoe("tenants", "add", "acme", "--database", path).exit_code == 0
    return path


def run(database: Path, *arguments: object) -> str:
    result = faasmoe(*arguments, "--database", database)
    assert (result.exit_code, result.exception) == (0, None), result.output
    return result.stdout


def keys(database: Path, *arguments: object) -> str:
    return run(database, "tenants", "keys", *arguments)


def test_keys_are_added_listed_and_revoked(database: Path) -> None:
    with TenantStore.open(database) as server:
        result = faasmoe("tenants", "keys", "add", "acme", "--expires", "30d", "--database", database)
        key = result.stdout.strip()
        assert "key-1" in result.stderr
        assert "not shown again" in result.stderr
        assert key not in result.stderr
        named = keys(database, "add", "acme", "--name", "laptop").strip()
        keys(database, "add", "acme")
        assert server.authenticate(key) == server.authenticate(named)

        header, *rows = keys(database, "list", "acme").splitlines()
        assert header.split() == ["key", "created", "expires", "state"]
        assert [(row.split()[0], row.split()[-1]) for row in rows] == [
            ("key-1", "valid"),
            ("key-2", "valid"),
            ("laptop", "valid"),
            ("main", "valid"),
        ]
        listed = json.loads(keys(database, "list", "acme", "--json"))
        assert [each["expires"] is None for each in listed] == [False, True, True, True]

        assert keys(database, "revoke", "acme", "key-1") == ""
        with pytest.raises(InvalidApiKey):
            server.authenticate(key)
        assert error_line(faasmoe("tenants", "keys", "revoke", "acme", "key-1", "--database", database)) == (
            "tenant acme has no key 'key-1'"
        )
        # The name is free again.
        result = faasmoe("tenants", "keys", "add", "acme", "--database", database)
        assert "key-1" in result.stderr


def test_a_new_main_key_leaves_the_others(database: Path) -> None:
    key = keys(database, "add", "acme", "--name", "ci").strip()
    result = faasmoe("tenants", "rotate-key", "acme", "--database", database)
    assert "other keys of acme stay as they are: ci" in result.stderr
    with TenantStore.open(database) as server:
        assert server.authenticate(key).name == server.authenticate(result.stdout.strip()).name


@pytest.mark.parametrize(
    ("expires", "problem"),
    [
        ("30", "is neither a duration such as 12h or 30d, nor a date"),
        ("soon", "is neither a duration such as 12h or 30d, nor a date"),
        ("2020-01-01", "is over"),
        ("0d", "is over"),
    ],
)
def test_bad_times_of_expiry(database: Path, expires: str, problem: str) -> None:
    result = faasmoe("tenants", "keys", "add", "acme", f"--expires={expires}", "--database", database)
    assert problem in usage_error(result)
    assert len(json.loads(keys(database, "list", "acme", "--json"))) == 1


def test_a_date_of_expiry(database: Path) -> None:
    keys(database, "add", "acme", "--name", "dated", "--expires", "2999-01-01T00:00:00+00:00")
    (dated, _) = json.loads(keys(database, "list", "acme", "--json"))
    assert dated["expires"] == "2999-01-01T00:00:00+00:00"


def test_bad_names_of_keys(database: Path) -> None:
    for name in ("a/b", "x" * 65):
        result = faasmoe("tenants", "keys", "add", "acme", f"--name={name}", "--database", database)
        assert "not a key's name" in usage_error(result)


def test_budgets_are_shown_with_what_is_used(database: Path) -> None:
    run(database, "tenants", "set", "acme", "--tokens-per-day", 1000, "--tokens-per-month", 20_000)
    with TenantStore.open(database) as store:
        store.book([Entry(uuid4().hex, 1, (Booking("acme", time.time(), 1, 100, 50, 0.0, 0.0),))])
    header, row = run(database, "tenants", "list").splitlines()
    shown = dict(zip(header.split(), row.split(), strict=False))
    assert (shown["tokens_per_day"], shown["tokens_per_month"]) == ("150/1000", "150/20000")
    (listed,) = json.loads(run(database, "tenants", "list", "--json"))
    assert (listed["tokens_per_day"], listed["tokens_today"], listed["tokens_this_month"]) == (1000, 150, 150)
    run(database, "tenants", "set", "acme", "--tokens-per-day", "none")
    assert json.loads(run(database, "tenants", "show", "acme", "--json"))["tokens_per_day"] is None
    for since in ("today", "month"):
        (used,) = json.loads(run(database, "usage", "--json", "--since", since))
        assert used["prompt_tokens"] == 100

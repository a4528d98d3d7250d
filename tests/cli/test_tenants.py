"""`faasmoe tenants` and `faasmoe usage`: their output, and their effect on a running server."""

import csv
import io
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import click
import pytest
from click.testing import CliRunner, Result

from control_plane.cli.main import main
from control_plane.cli.tenancy.tenants import tenants
from control_plane.errors import InvalidApiKey
from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.tenants import Limits
from control_plane.tenancy.usage import Booking, Entry
from tests.support.command_line import error_line, faasmoe, usage_error


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "state" / "faasmoe.db"


def run(database: Path, *arguments: object) -> str:
    """Run a command that succeeds, and return its standard output."""
    result = faasmoe(*arguments, "--database", database)
    assert (result.exit_code, result.exception) == (0, None), result.output
    return result.stdout


def refused(database: Path, *arguments: object) -> str:
    return error_line(faasmoe(*arguments, "--database", database))


def shown(database: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(database, "tenants", "show", name, "--json"))
    return found


def book(database: Path, *bookings: Booking) -> None:
    with TenantStore.open(database) as store:
        store.book([Entry(uuid4().hex, 1, bookings)])


@pytest.mark.parametrize("name", sorted(tenants.commands))
def test_help_of_every_command(name: str) -> None:
    result = faasmoe("tenants", name, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: main tenants {name} [OPTIONS]")
    for parameter in tenants.commands[name].params:
        if isinstance(parameter, click.Option):
            assert all(option in result.output for option in parameter.opts)
            assert parameter.help


def test_commands_do_not_import_torch(database: Path) -> None:
    program = (
        "import sys; from control_plane.cli.main import main; "
        "main([*sys.argv[1:]], standalone_mode=False); sys.exit('torch' in sys.modules)"
    )
    for command in (["tenants", "add", "acme"], ["tenants", "list"], ["usage"]):
        arguments = [sys.executable, "-c", program, *command, "--database", str(database)]
        assert subprocess.run(arguments, capture_output=True).returncode == 0


def test_add_prints_the_key_alone_on_standard_output(database: Path) -> None:
    options = ("--weight", 2, "--rpm", 60, "--tpm", 20000, "--max-concurrency", 8)
    result = faasmoe("tenants", "add", "acme", *options, "--database", database)
    assert result.exit_code == 0
    key = result.stdout.removesuffix("\n")
    assert "not shown again" in result.stderr
    assert key not in result.stderr
    with TenantStore.open(database) as store:
        tenant = store.authenticate(key)
    assert (tenant.name, tenant.limits) == ("acme", Limits(2, 60, 20000, 8))
    assert not tenant.operator


def test_a_running_server_sees_every_change(database: Path) -> None:
    with TenantStore.open(database) as server:
        first = run(database, "tenants", "add", "acme").strip()
        assert server.authenticate(first).limits == Limits()
        run(database, "tenants", "set", "acme", "--rpm", 5, "--operator")
        tenant = server.authenticate(first)
        assert (tenant.limits, tenant.operator) == (Limits(rpm=5), True)
        second = run(database, "tenants", "rotate-key", "acme").strip()
        assert server.authenticate(second).limits == Limits(rpm=5)
        with pytest.raises(InvalidApiKey):
            server.authenticate(first)
        assert run(database, "tenants", "remove", "acme") == ""
        with pytest.raises(InvalidApiKey):
            server.authenticate(second)


def test_set_changes_only_the_given_limits(database: Path) -> None:
    run(database, "tenants", "add", "acme", "--weight", 2, "--rpm", 60, "--max-output", 9, "--operator")
    before = shown(database, "acme")
    assert run(database, "tenants", "set", "acme", "--rpm", "none", "--tpm", 100) == ""
    assert shown(database, "acme") == {**before, "rpm": None, "tpm": 100}
    run(database, "tenants", "set", "acme", "--no-operator", "--weight", 0.5)
    assert shown(database, "acme") == {**before, "rpm": None, "tpm": 100, "operator": False, "weight": 0.5}


def test_list(database: Path) -> None:
    run(database, "tenants", "add", "bob", "--rpm", 5, "--operator")
    run(database, "tenants", "add", "acme", "--weight", 1.5)
    header, acme, bob = run(database, "tenants", "list").splitlines()
    assert header.split()[:3] == ["tenant", "weight", "rpm"]
    assert acme.split()[:10] == ["acme", "1.5", *"-------", "no"]
    assert bob.split()[:10] == ["bob", "1", "5", *"------", "yes"]
    assert run(database, "tenants", "show", "bob").splitlines()[1].split() == bob.split()

    found = json.loads(run(database, "tenants", "list", "--json"))
    assert [tenant["name"] for tenant in found] == ["acme", "bob"]
    assert found[1] == shown(database, "bob")
    created = datetime.fromisoformat(found[0].pop("created"))
    assert abs(created - datetime.now(UTC)).total_seconds() < 60
    assert found[0] == {
        "name": "acme",
        "weight": 1.5,
        "rpm": None,
        "tpm": None,
        "max_concurrency": None,
        "max_context": None,
        "max_output": None,
        "tokens_per_day": None,
        "tokens_per_month": None,
        "tokens_today": 0,
        "tokens_this_month": 0,
        "operator": False,
    }


READING = [
    ["tenants", "list"],
    ["tenants", "show", "acme"],
    ["tenants", "set", "acme", "--rpm", 5],
    ["tenants", "rotate-key", "acme"],
    ["tenants", "remove", "acme"],
    ["usage"],
]


@pytest.mark.parametrize("command", READING, ids=lambda command: " ".join(map(str, command)))
def test_a_missing_database_is_not_created(database: Path, command: list[object]) -> None:
    problem = "No such file or directory"
    assert refused(database, *command) == f"cannot open the database {database}: {problem}"
    assert not database.parent.exists()


@pytest.mark.parametrize("command", [["tenants", "add", "acme"], *READING])
def test_a_database_without_a_name(command: list[object]) -> None:
    assert usage_error(faasmoe(*command, "--database", "")).startswith("--database: ")


def test_an_empty_list(database: Path) -> None:
    run(database, "tenants", "add", "acme")
    run(database, "tenants", "remove", "acme")
    assert len(run(database, "tenants", "list").splitlines()) == 1
    assert json.loads(run(database, "tenants", "list", "--json")) == []


@pytest.mark.parametrize("command", ["show", "set", "rotate-key", "remove"])
def test_unknown_tenants(database: Path, command: str) -> None:
    options = ["--rpm", 5] if command == "set" else []
    run(database, "tenants", "add", "acme")
    assert refused(database, "tenants", command, "eve", *options) == "there is no tenant 'eve'"


def test_a_name_that_is_taken(database: Path) -> None:
    run(database, "tenants", "add", "acme")
    assert refused(database, "tenants", "add", "acme") == "there is a tenant acme already"


def test_bad_names(database: Path) -> None:
    for name in ("a/b", "", "x" * 65, "\udcff"):
        for command in ("add", "show", "remove"):
            result = faasmoe("tenants", command, name, "--database", database)
            assert "not a tenant's name" in usage_error(result)


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--rpm", "0", "not in the range x>=1"),
        ("--tpm", "many", "not a valid integer"),
        ("--max-concurrency", "-1", "not in the range x>=1"),
        ("--max-output", "1.5", "not a valid integer"),
        ("--weight", "none", "not a valid float"),
    ],
)
def test_bad_limits(database: Path, option: str, value: str, problem: str) -> None:
    for command in ("add", "set"):
        result = faasmoe("tenants", command, "acme", f"{option}={value}", "--database", database)
        assert problem in usage_error(result)
    assert not database.exists()


def test_bad_weights(database: Path) -> None:
    for weight in (0, -1, 0.0009, 1e-300, 1001, "nan", "inf"):
        assert "weight must be a number from 0.001" in refused(
            database, "tenants", "add", "acme", f"--weight={weight}"
        )
    assert not database.exists()
    run(database, "tenants", "add", "acme", "--weight", 0.001)
    assert shown(database, "acme")["weight"] == 0.001


def test_nothing_to_set(database: Path) -> None:
    assert usage_error(faasmoe("tenants", "set", "acme", "--database", database)).startswith("nothing to set")


def test_the_default_database(tmp_path: Path) -> None:
    def listed(**environment: str | None) -> list[str]:
        result = CliRunner(env=environment).invoke(main, ["tenants", "list", "--json"])
        return [tenant["name"] for tenant in json.loads(result.stdout)]

    state = {"XDG_STATE_HOME": str(tmp_path)}
    run(tmp_path / "own.db", "tenants", "add", "acme")
    run(tmp_path / "faasmoe" / "faasmoe.db", "tenants", "add", "bob")
    assert listed(**state, FAASMOE_DATABASE=str(tmp_path / "own.db")) == ["acme"]
    assert listed(**state, FAASMOE_DATABASE=None) == ["bob"]


@pytest.mark.parametrize("command", [["tenants", "list"], ["tenants", "add", "acme"], ["usage"]])
def test_a_file_that_is_not_a_database(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "notes").write_text("not a database, but more than a few words of text\n" * 20)
    message = refused(tmp_path / "notes", *command)
    assert message == f"cannot open the database {tmp_path / 'notes'}: file is not a database"


USAGE = [
    {
        "tenant": "acme",
        "requests": 3,
        "prompt_tokens": 30,
        "generated_tokens": 12,
        "expert_invocations": 4.5,
        "expert_seconds": 0.75,
    },
    {
        "tenant": "bob",
        "requests": 1,
        "prompt_tokens": 1000,
        "generated_tokens": 0,
        "expert_invocations": 0.0,
        "expert_seconds": 0.0,
    },
]


@pytest.fixture
def used(database: Path) -> Path:
    """A database with three requests of acme, one of them old, and one request of bob, a removed tenant."""
    run(database, "tenants", "add", "acme")
    now = time.time()
    old, recent = (Booking("acme", now - age, 1, 10, 4, 1.5, 0.25) for age in (5 * 86400, 7200))
    book(
        database,
        old,
        recent,
        Booking("acme", now, 1, 10, 4, 1.5, 0.25),
        Booking("bob", now, 1, 1000, 0, 0, 0),
    )
    return database


def test_usage_as_a_table(used: Path) -> None:
    header, acme, bob = run(used, "usage").splitlines()
    assert header.split("  ")[0] == "tenant"
    assert acme.split() == ["acme", "3", "30", "12", "4.5", "0.750"]
    assert bob.split() == ["bob", "1", "1000", "0", "0.0", "0.000"]
    assert run(used, "usage", "--tenant", "bob").splitlines()[1:] == [bob]


def test_usage_for_programs(used: Path) -> None:
    assert json.loads(run(used, "usage", "--json")) == USAGE
    rows = list(csv.DictReader(io.StringIO(run(used, "usage", "--csv"))))
    assert rows == [{name: str(value) for name, value in usage.items()} for usage in USAGE]
    assert usage_error(faasmoe("usage", "--json", "--csv")) == "--json and --csv exclude each other"


@pytest.mark.parametrize(
    ("since", "requests"),
    [
        ("30m", 1),
        ("24h", 2),
        ("4d", 2),
        ("7d", 3),
        ("999999999d", 3),
        ("2020-01-01", 3),
        ("2020-01-01T10:00Z", 3),
    ],
)
def test_usage_since(used: Path, since: str, requests: int) -> None:
    (usage,) = json.loads(run(used, "usage", "--json", "--tenant", "acme", "--since", since))
    assert usage["requests"] == requests


def test_no_usage_since_a_future_date(used: Path) -> None:
    assert json.loads(run(used, "usage", "--json", "--since", "2999-01-01")) == []
    assert json.loads(run(used, "usage", "--json", "--tenant", "bob", "--since", "2999-01-01")) == []


@pytest.mark.parametrize("since", ["", "24", "h", "-1h", "1.5h", "24H", "yesterday", "2026-13-01", "٣h"])
def test_bad_values_of_since(database: Path, since: str) -> None:
    assert "is neither an age such as" in usage_error(faasmoe("usage", f"--since={since}"))


def test_usage_of_a_tenant_without_requests(used: Path) -> None:
    assert refused(used, "usage", "--tenant", "eve") == "there is no tenant 'eve'"
    run(used, "tenants", "add", "eve")
    result: Result = faasmoe("usage", "--tenant", "eve", "--json", "--database", used)
    assert json.loads(result.stdout) == []

"""Names, limits and keys of tenants, and their declaration in the config file."""

from pathlib import Path
from typing import Any

import pytest

from control_plane.config import ServeConfig
from control_plane.errors import ConfigError
from control_plane.tenancy.declared import DeclaredTenant
from control_plane.tenancy.tenants import BOUNDS, Limits, Tenant

KEY = "a-key-that-somebody-chose"
BOUND = "a whole number from 1 to 1000000000000"
WEIGHT = "a number from 0.001 to 1000"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "faasmoe.yml"


def declared(file: Path, text: str) -> tuple[DeclaredTenant, ...]:
    file.write_text(text)
    return ServeConfig.load(file, {}).tenants


def refusal(file: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        declared(file, text)
    return str(caught.value).removeprefix(f"{file}: ")


@pytest.mark.parametrize("name", ["a", "7", "acme", "Acme-2.eu_west", "x" * 64])
def test_names(name: str) -> None:
    assert Tenant(name, Limits()).name == name


@pytest.mark.parametrize("name", ["", "-a", ".", "_a", "a b", "a/b", "a\n", "é", "x" * 65, "\udcff", "a\0"])
def test_bad_names(name: str) -> None:
    with pytest.raises(ConfigError, match="not a tenant's name"):
        Tenant(name, Limits())


@pytest.mark.parametrize("weight", [0.0, -1.0, 1000.1, float("nan"), float("inf")])
def test_weights_out_of_range(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"weight must be a number from 0\.001 to 1000"):
        Limits(weight=weight)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("value", [0, -1, 10**13])
def test_bounds_out_of_range(bound: str, value: int) -> None:
    limits: dict[str, Any] = {bound: value}
    with pytest.raises(ConfigError, match=f"{bound} must be a whole number from 1 to"):
        Limits(**limits)


def test_limits_at_the_edge() -> None:
    assert Limits(weight=1000, rpm=1).weight == 1000
    assert Limits(weight=0.001).rpm is None


def test_declared_tenants(file: Path) -> None:
    (file.parent / "secret").write_text(f"{KEY}\n")
    found = declared(
        file,
        """
        tenants:
          - {name: acme, key_file: secret, weight: 2, rpm: 60, tpm: 20000, max_concurrency: 8,
             max_context: 512, max_output: 64, operator: true}
          - name: bob
        """,
    )
    assert found == (
        DeclaredTenant("acme", Limits(2, 60, 20000, 8, 512, 64), operator=True, key=KEY),
        DeclaredTenant("bob", Limits()),
    )
    assert KEY not in repr(found)


def test_a_key_file_in_another_folder(file: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secrets" / "acme"
    secret.parent.mkdir()
    secret.write_text(KEY)
    assert declared(file, f"tenants: [{{name: acme, key_file: {secret}}}]")[0].key == KEY


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{name: acme, rmp: 5}", "tenant acme: unknown setting 'rmp'; there are name, key_file, weight, rpm"),
        ("{name: acme, 7: 5}", "tenant acme: unknown setting 7"),
        ("{name: acme, rpm: 0}", "tenant acme: rpm must be a whole number from 1 to"),
        (
            "{name: acme, rpm: 1.5}",
            f"tenant acme: rpm must be {BOUND}, not 1.5",
        ),
        (
            "{name: acme, rpm: true}",
            f"tenant acme: rpm must be {BOUND}, not True",
        ),
        ("{name: acme, rpm: }", f"tenant acme: rpm must be {BOUND}, not None"),
        (
            "{name: acme, weight: heavy}",
            f"tenant acme: weight must be {WEIGHT}, not 'heavy'",
        ),
        ("{name: acme, weight: .nan}", f"tenant acme: weight must be {WEIGHT}, not nan"),
        ("{name: acme, operator: 1}", "tenant acme: operator must be true or false, not 1"),
        ("{name: acme, key_file: 5}", "tenant acme: key_file must be a string, not 5"),
        ("{name: acme, key_file: none}", "tenant acme: cannot read the key file"),
        ("{name: acme, key_file: short}", "tenant acme: the key in "),
        ('{name: acme, key_file: "\\0"}', "tenant acme: cannot read the key file"),
        ('{name: acme, key_file: "\\ud800"}', "tenant acme: cannot read the key file"),
        ("{name: acme, key_file: /dev/zero}", "tenant acme: the key file /dev/zero has more than 4096 bytes"),
        ("{name: a b}", "tenant a b: not a tenant's name"),
        ("{name: 5}", "tenant 5: name must be a string, not 5"),
        ("{rpm: 5}", "tenants: the entry number 1 has no name"),
        ("acme", "tenants: the entry number 1 has no name"),
        ("{name: acme}, {name: bob}, {name: acme}", "tenant acme: name: declared 2 times"),
    ],
)
def test_bad_declarations(file: Path, entry: str, problem: str) -> None:
    (file.parent / "short").write_text("short")
    assert refusal(file, f"tenants: [{entry}]").startswith(problem)


@pytest.mark.parametrize("text", ["tenants: acme", "tenants: {name: acme}", "tenants:"])
def test_tenants_that_are_not_a_list(file: Path, text: str) -> None:
    assert refusal(file, text).startswith("tenants must be a list")


@pytest.mark.parametrize("content", [b"", b" \n", b"short\n", b"two words of a long key", b"\xff" * 30])
def test_bad_key_files(file: Path, content: bytes) -> None:
    secret = file.parent / "secret"
    secret.write_bytes(content)
    message = refusal(file, "tenants: [{name: acme, key_file: secret}]")
    assert message.startswith("tenant acme: ")
    assert str(secret) in message
    assert "two words" not in message

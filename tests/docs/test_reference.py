"""docs/reference.md lists exactly the settings, errors, environment variables and metrics of the code."""

import re
from dataclasses import fields
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from control_plane.api.openai.errors import KINDS
from control_plane.config import PRIVATE_NETWORKS, ServeConfig
from tests.support.api.api_server import add_tenant, serving
from tests.support.paths import ROOT

REFERENCE = (ROOT / "docs" / "reference.md").read_text()


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    return REFERENCE.split(f"## {title}\n", 1)[1].split("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """The cells of a section's table, without its header."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def names(cell: str) -> list[str]:
    """The words of a cell in backquotes."""
    return re.findall(r"`([^`]+)`", cell)


def test_settings() -> None:
    documented = {
        name: default
        for (name,), default in ((names(row[0]), row[1]) for row in rows("Settings of `faasmoe serve`"))
    }
    assert list(documented) == [setting.name for setting in fields(ServeConfig)]
    words = {"none": None, "see below": "", "empty": "", "private ones": str(PRIVATE_NETWORKS)}
    for setting in fields(ServeConfig):
        text = documented[setting.name].strip("`")
        default = words.get(text, text)
        wanted = setting.default if setting.default not in ((), None) else None
        wanted = str(wanted).lower() if isinstance(wanted, bool) else wanted
        wanted = f"{wanted:g}" if isinstance(wanted, float) else wanted
        assert default == (None if wanted is None else str(wanted)), setting.name


def test_errors() -> None:
    documented = {
        (int(status), code) for row in rows("Errors") for status in [row[0]] for code in names(row[1])
    }
    assert documented == {(kind.status, kind.code) for kind in KINDS.values() if kind.code}
    assert {kind.status for kind in KINDS.values()} <= {int(row[0]) for row in rows("Errors")}


def test_environment_variables() -> None:
    documented = {name for row in rows("Environment variables") for name in names(row[0])}
    sources = [path for folder in ("control_plane", "functions") for path in (ROOT / folder).rglob("*.py")]
    used = {
        name
        for path in sources
        for name in re.findall(r"\b(?:FAASMOE|OPENFAAS)_[A-Z]+(?:_[A-Z]+)*\b", path.read_text())
    }
    assert documented == used


def test_metrics(chat_partition: Path, tmp_path: Path) -> None:
    documented = {
        f"faasmoe:{name}": set(names(row[1]))
        for row in rows("Metrics of the control plane")
        for name in names(row[0])
    }
    database = tmp_path / "faasmoe.db"
    with serving(chat_partition, database, memory_budget=4 << 30) as server:
        operator = server.with_key(add_tenant(database, "operator", operator=True))
        operator.post("/v1/completions", prompt="a", max_tokens=2, store=True)
        operator.answer("POST", "/v1/completions", {"prompt": 1.5})
        limited = server.with_key(add_tenant(database, "limited", max_context=1, rpm=1))
        for _ in range(2):
            limited.answer("POST", "/v1/completions", {"prompt": "a", "max_tokens": 0, "echo": True})
        text = operator.answer("GET", "/metrics").body.decode()
    exposed = {
        name: set(labels)
        for name, labels in families(text).items()
        if name.startswith("faasmoe:") and not name.endswith("_created")
    }
    assert documented == exposed


def families(text: str) -> dict[str, frozenset[str]]:
    """Metrics by name as Prometheus stores them, histograms by their base name, with all their labels."""
    found: dict[str, frozenset[str]] = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels}
        found[name] = frozenset(labels - {"model_name", "le"})
    return found

"""Imports go one way, and every error is drawn and has a status."""

import ast
import re
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

from control_plane import errors
from control_plane.api.openai.errors import KINDS
from tests.support.paths import ROOT

LAYERS = (
    ("control_plane.errors",),
    ("control_plane.http", "control_plane.quantities", "control_plane.formatting", "control_plane.files"),
    ("control_plane.validation",),
    ("control_plane.signals",),
    ("functions",),
    ("control_plane.tenancy", "control_plane.config", "control_plane.gateway_access"),
    ("control_plane.partition", "control_plane.faas"),
    ("control_plane.deployment",),
    ("control_plane.gateway",),
    ("control_plane.engine", "control_plane.autoscaling"),
    ("control_plane.observability",),
    ("control_plane.api",),
    ("control_plane.app",),
    ("control_plane.up", "control_plane.profiling"),
    ("bench.support",),
    ("bench.comparison",),
    ("control_plane.cli", "control_plane.__main__"),
    ("bench.micro", "bench.memory_limit"),
)
"""Each may import itself and what stands above it."""

OURS = {"control_plane", "functions", "bench"}


def imports(package: str) -> list[tuple[str, str]]:
    """(importing module, what it imports) for everything below a folder, also inside functions.

    `from a import b` counts as a.b, whether b is a module of a or a name in it.
    """
    return [
        (module_name(path), imported)
        for path in sorted((ROOT / package).rglob("*.py"))
        for imported in imported_names(path)
    ]


def imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.relative_to(ROOT).parent.parts)
            module = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_in(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def layer(name: str) -> int:
    """Where in LAYERS a module, or a name in it, stands."""
    found = [number for number, packages in enumerate(LAYERS) if any(is_in(name, p) for p in packages)]
    assert found, f"{name} has no place in LAYERS"
    return found[0]


@pytest.mark.parametrize("package", sorted(OURS))
def test_imports_go_one_way(package: str) -> None:
    ours = [(importer, name) for importer, name in imports(package) if name.split(".")[0] in OURS]
    assert ours
    assert [(importer, name) for importer, name in ours if layer(name) > layer(importer)] == []


def test_functions_need_little() -> None:
    """Their folder alone is the image; torch would be 150 MB for each of them."""
    roots = {name.split(".")[0] for _, name in imports("functions")}
    assert roots - sys.stdlib_module_names == {"functions", "numpy", "httptools"}


def test_the_engine_knows_faas_by_one_protocol() -> None:
    faas = {name for _, name in imports("control_plane/engine") if is_in(name, "control_plane.faas")}
    assert faas
    assert all(is_in(name, "control_plane.faas.invocation") for name in faas)


def test_the_benchmarks_stay_outside() -> None:
    names = {name for _, name in imports("bench")}
    assert names
    assert not any(is_in(name, f"control_plane.{part}") for name in names for part in ("engine", "api"))


def error_classes() -> list[type]:
    return [value for value in vars(errors).values() if isinstance(value, type)]


def test_every_error_has_a_status() -> None:
    assert set(KINDS) == set(error_classes())


def test_the_errors_are_drawn_as_they_are() -> None:
    """The tree in the module's docstring: each line is a class, indented below its parent."""
    drawn: dict[str, str] = {}
    path: list[str] = []
    for indent, name in re.findall(
        r"^ {4}((?:[|` ] {3})*(?:[|`]-- )?)([A-Z]\w+)", errors.__doc__ or "", re.M
    ):
        path[len(indent) // 4 :] = [name]
        drawn[name] = path[-2] if len(path) > 1 else "Exception"
    assert drawn == {error.__name__: error.__bases__[0].__name__ for error in error_classes()}

"""Imports go one way, folders stay small, and every error is documented and has a status."""

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import resolve_name
from pathlib import Path

import pytest

from control_plane import errors
from control_plane.api.openai.errors import KINDS
from tests.support.paths import ROOT

LAYERS = (
    ("functions",),
    ("control_plane.errors",),
    ("control_plane.http", "control_plane.quantities", "control_plane.formatting", "control_plane.files"),
    ("control_plane.validation",),
    ("control_plane.signals", "control_plane.readable"),
    ("control_plane.tenancy", "control_plane.config", "control_plane.faas.gateway_access"),
    ("control_plane.partition", "control_plane.faas"),
    ("control_plane.hub",),
    ("control_plane.deployment",),
    ("control_plane.gateway",),
    ("control_plane.engine", "control_plane.autoscaling"),
    ("control_plane.observability",),
    ("control_plane.api",),
    ("control_plane.app",),
    ("control_plane.up", "control_plane.offline", "control_plane.architecture", "control_plane.inspection"),
    ("bench.support",),
    ("bench.comparison",),
    ("control_plane.cli", "control_plane.__main__"),
    ("bench.micro", "bench.memory_limit", "bench.peers", "bench.robustness"),
)
"""The parts of the program. Each may import itself and the parts above it."""

OURS = {"control_plane", "functions", "bench"}


def imports(package: str) -> list[tuple[str, str]]:
    """(importing module, imported name) for all imports below a folder, also inside functions.

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
    """The index in LAYERS of a module, or of a name in it."""
    found = [number for number, packages in enumerate(LAYERS) if any(is_in(name, p) for p in packages)]
    assert found, f"{name} has no place in LAYERS"
    return found[0]


@pytest.mark.parametrize("package", sorted(OURS))
def test_imports_go_one_way(package: str) -> None:
    ours = [(importer, name) for importer, name in imports(package) if name.split(".")[0] in OURS]
    assert ours
    assert [(importer, name) for importer, name in ours if layer(name) > layer(importer)] == []


def test_no_folder_has_too_many_modules() -> None:
    most = {**dict.fromkeys(OURS, 12), "tests": 20}
    crowded = {
        str(folder.relative_to(ROOT)): len(modules)
        for package, limit in most.items()
        for folder, modules in modules_by_folder(package).items()
        if len(modules) > limit
    }
    assert crowded == {}


def modules_by_folder(package: str) -> dict[Path, list[Path]]:
    """The modules of each folder below a package; in `tests`, only the files with tests."""
    found: dict[Path, list[Path]] = {}
    for path in (ROOT / package).rglob("test_*.py" if package == "tests" else "*.py"):
        if path.name != "__init__.py":
            found.setdefault(path.parent, []).append(path)
    return found


def test_no_folders_import_each_other_in_a_circle() -> None:
    """This holds for folders, and for the parts that LAYERS lists."""
    assert circles(imports_between(folder_of)) == []
    assert circles(imports_between(part_of)) == []


def folder_of(name: str) -> str:
    """The folder of a module, or of a name in it. A top-level module of a package stands for itself."""
    path = ROOT.joinpath(*name.split("."))
    while not path.is_dir() and not path.with_suffix(".py").is_file():
        path = path.parent
    folder = path if path.is_dir() else path.parent
    return ".".join((folder if folder.parent != ROOT else path).relative_to(ROOT).parts)


def part_of(name: str) -> str:
    """The entry of LAYERS that contains a module."""
    return next(part for parts in LAYERS for part in parts if is_in(name, part))


def imports_between(group: Callable[[str], str]) -> dict[str, set[str]]:
    """The other groups of modules that each group imports from."""
    graph: dict[str, set[str]] = {}
    for package in sorted(OURS):
        for importer, name in imports(package):
            if name.split(".")[0] in OURS and group(name) != group(importer):
                graph.setdefault(group(importer), set()).add(group(name))
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """The sets of groups that import each other, directly or by way of others."""
    reach = {group: set(imported) for group, imported in graph.items()}
    for middle in graph:
        for imported in reach.values():
            if middle in imported:
                imported |= reach[middle]
    found: list[set[str]] = []
    for group in sorted(graph):
        circle = {other for other in reach[group] if group in reach.get(other, ())}
        if circle and circle not in found:
            found.append(circle)
    return found


def test_functions_import_few_packages() -> None:
    """The image has only their folder and small packages; torch would take 150 MB in each function."""
    roots = {name.split(".")[0] for _, name in imports("functions")}
    assert roots - sys.stdlib_module_names == {"functions", "numpy", "httptools", "xxhash"}


def test_the_engine_imports_only_the_protocol_of_faas() -> None:
    faas = {name for _, name in imports("control_plane/engine") if is_in(name, "control_plane.faas")}
    assert faas
    assert all(is_in(name, "control_plane.faas.invocation") for name in faas)


def test_benchmarks_do_not_import_the_control_plane_s_internals() -> None:
    """The comparison uses the HTTP API; only what measures or fuzzes C functions imports the engine."""
    compiled = ("control_plane.engine.kernels", "control_plane.engine.experts._row_groups")
    # The cost of a layer by part has to be measured where the parts are.
    names = {name for importer, name in imports("bench") if importer != "bench.micro.layer"}
    names = {name for name in names if not any(is_in(name, part) for part in compiled)}
    assert not any(is_in(name, f"control_plane.{part}") for name in names for part in ("engine", "api"))


def error_classes() -> list[type]:
    return [value for value in vars(errors).values() if isinstance(value, type)]


def test_every_error_has_a_status() -> None:
    assert set(KINDS) == set(error_classes())


def test_the_tree_of_errors_is_up_to_date() -> None:
    """The module's docstring has the tree of errors: each line is a class, indented below its parent."""
    drawn: dict[str, str] = {}
    path: list[str] = []
    for indent, name in re.findall(
        r"^ {4}((?:[|` ] {3})*(?:[|`]-- )?)([A-Z]\w+)", errors.__doc__ or "", re.M
    ):
        path[len(indent) // 4 :] = [name]
        drawn[name] = path[-2] if len(path) > 1 else "Exception"
    assert drawn == {error.__name__: error.__bases__[0].__name__ for error in error_classes()}

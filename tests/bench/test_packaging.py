"""A plain installation has all that `faasmoe bench` needs, without the checkout."""

from configparser import ConfigParser
from pathlib import Path

import pytest

from bench.comparison.environment import commit
from tests.support.paths import ROOT

PACKAGES = ("bench", "control_plane", "functions")
NOT_DATA = {".py", ".pyc", ".pyi", ".so"}
"""Suffixes of files that setuptools installs by itself, or that are built."""


def test_all_data_files_are_in_the_package_data() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    declared = {
        file
        for package, patterns in config["options.package_data"].items()
        for pattern in patterns.split()
        for file in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    found = {
        file
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and file.suffix not in NOT_DATA
    }
    assert ROOT / "bench" / "comparison" / "report" / "report.html.j2" in found
    assert found <= declared


@pytest.mark.parametrize("package", ["bench/comparison", "bench/support", "control_plane"])
def test_installed_commands_use_no_scripts(package: str) -> None:
    users = [file for file in (ROOT / package).rglob("*.py") if "scripts/" in file.read_text()]
    assert users == []


def test_without_a_checkout_the_commit_is_unknown(tmp_path: Path) -> None:
    assert commit(tmp_path) == "unknown"
    inside_another_project = ROOT / "bench" / "comparison"
    assert commit(inside_another_project) == "unknown"

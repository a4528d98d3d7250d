"""The files in deploy/ name options and settings that exist."""

import configparser
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from control_plane.cli.main import main
from control_plane.config import ServeConfig
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"


def documents() -> dict[str, dict[str, Any]]:
    """The Kubernetes objects by kind."""
    text = (DEPLOY / "kubernetes" / "control-plane.yaml").read_text()
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def check_command(words: list[str]) -> None:
    """Check that a command of `faasmoe` has all the options that are used."""
    command, *rest = words
    known = {option for parameter in main.commands[command].params for option in parameter.opts}
    used = {word.partition("=")[0] for word in rest if word.startswith("--")}
    assert used <= known


def test_kubernetes_objects_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = documents()
    assert set(found) == {"ConfigMap", "Deployment", "Service", "PodDisruptionBudget"}
    template = found["Deployment"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    (container,) = template["spec"]["containers"]
    check_command(container["args"])
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in template["spec"]["volumes"]}
    paths = [word for word in container["args"] if word.startswith("/")]
    paths += [word.partition("=")[2] for word in container["args"] if "=/" in word]
    assert paths
    assert all(any(path.startswith(mount) for mount in mounts.values()) for path in paths)
    file = tmp_path / "serve.yml"
    file.write_text(found["ConfigMap"]["data"]["serve.yml"])
    config = ServeConfig.load(file, {})
    (port,) = container["ports"]
    assert port["containerPort"] == config.port
    assert config.host == "0.0.0.0"
    assert template["spec"]["terminationGracePeriodSeconds"] > config.drain_seconds


def test_the_systemd_unit_runs_an_existing_command() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string((DEPLOY / "systemd" / "faasmoe.service").read_text().replace("\\\n", " "))
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    assert program.endswith("/faasmoe")
    check_command(words)
    assert float(unit["Service"]["TimeoutStopSec"]) > ServeConfig.drain_seconds


def test_the_dockerfile_installs_the_versions_of_setup_cfg() -> None:
    wanted = re.search(r"torch==[\d.]+", (DEPLOY.parent / "setup.cfg").read_text())
    assert wanted
    assert wanted[0] in (DEPLOY / "control-plane.Dockerfile").read_text()

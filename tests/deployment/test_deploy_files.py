"""The files in deploy/ name options and settings that exist."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from control_plane.cli.main import main
from control_plane.config import ServeConfig
from control_plane.deployment.stack import deployments
from control_plane.partition.granularity import Granularity
from functions.contract.process import DEFAULT_PORT
from tests.support.models.tiny_partition import TinyPartition
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"


def documents(namespace: str = "openfaas") -> dict[str, dict[str, Any]]:
    """The Kubernetes objects of a namespace by kind."""
    text = (DEPLOY / "kubernetes" / "control-plane.yaml").read_text()
    found = [each for each in yaml.safe_load_all(text) if each["metadata"]["namespace"] == namespace]
    return {document["kind"]: document for document in found}


def check_command(words: list[str]) -> None:
    """Check that a command of `faasmoe` has all the options that are used."""
    command, *rest = words
    known = {option for parameter in main.commands[command].params for option in parameter.opts}
    used = {word.partition("=")[0] for word in rest if word.startswith("--")}
    assert used <= known


def test_kubernetes_objects_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = documents()
    assert set(found) == {"ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}
    template = found["Deployment"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    policy = found["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert policy["ingress"] == [{"ports": [{"port": container_port(template)}]}]
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
    assert container_port(template) == config.port
    assert config.host == "0.0.0.0"
    assert template["spec"]["terminationGracePeriodSeconds"] > config.drain_seconds


def container_port(template: dict[str, Any]) -> int:
    (container,) = template["spec"]["containers"]
    (port,) = container["ports"]
    return int(port["containerPort"])


def test_the_network_policy_chooses_our_functions(tmp_path: Path) -> None:
    policy = documents("openfaas-fn")["NetworkPolicy"]["spec"]
    tiny = TinyPartition.make(tmp_path, "f32", Granularity(2, 2))
    for deployment in deployments(tiny.manifest):
        assert policy["podSelector"]["matchLabels"].items() <= deployment.labels.items()
    assert policy["ingress"][0]["ports"] == [{"port": DEFAULT_PORT}]
    assert "egress" not in policy  # the list of what is allowed


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_systemd_unit_is_hardened() -> None:
    unit = DEPLOY / "systemd" / "faasmoe.service"
    # The threshold is ten times the rating, which is from 0 (none) to 10 (all) of the machine exposed.
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(unit)]
    rated = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert rated.returncode == 0, rated.stdout


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

"""`faasmoe inspect` and `up` with a model's id."""

import json
import shutil
from pathlib import Path

import pytest

from control_plane.partition.manifest import Manifest
from tests.support.command_line import faasmoe, running_command
from tests.support.hub_server import COMMIT, ID, Hub

pytestmark = pytest.mark.slow


@pytest.fixture
def model(hub: Hub, chat_checkpoint: Path) -> None:
    """The hub has the tiny chat model."""
    hub.files = {path.name: path.read_bytes() for path in chat_checkpoint.iterdir()}


@pytest.mark.usefixtures("model")
def test_inspect(hub: Hub, chat_checkpoint: Path, tmp_path: Path) -> None:
    with running_command("inspect", ID, "--json", temporary=tmp_path) as command:
        assert command.process.stdout is not None
        found = json.loads(command.process.stdout.read())
    wanted = json.loads(faasmoe("inspect", chat_checkpoint, "--json").stdout)
    assert found["name"] == "tiny"
    assert found["machine"]["disk_bandwidth"] is None
    for key in (
        "family",
        "way",
        "layers",
        "experts",
        "functions",
        "context",
        "kv_bytes_per_token",
        "weights",
    ):
        assert found[key] == wanted[key]
    assert sorted(hub.downloads()) == ["config.json", "model.safetensors"]
    assert not (tmp_path / "hf").exists()


@pytest.mark.usefixtures("model")
def test_up(hub: Hub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = ("--port", 0, "--gateway-port", 0, "--kv-cache-mb", 8)
    partition = tmp_path / "cache" / "faasmoe" / f"org--tiny--{COMMIT[:12]}.faasmoe"
    with running_command("up", ID, *ports, temporary=tmp_path) as system:
        server = system.wait_for(r"serving on (\S+);")
        assert faasmoe("prompt", "the cat", "--max-tokens", 2, "--server", server).exit_code == 0
    assert Manifest.load(partition).name == "tiny"
    # The partition is enough, without the download or a network.
    shutil.rmtree(cache / "blobs")
    hub.requests.clear()
    for offline in ("0", "1"):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        with running_command("up", ID, *ports, temporary=tmp_path) as system:
            system.wait_for(r"serving on (\S+);")
    assert hub.downloads() == []

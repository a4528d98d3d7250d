"""`faasmoe pull` against a hub on loopback, with the hub's own library."""

import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.command_line import WAIT_SECONDS, error_line, faasmoe
from tests.support.hub_server import COMMIT, ID, Hub

pytestmark = pytest.mark.slow

CHUNK = 10 << 20
"""The bytes that the library writes at a time."""
SMALL = {
    "config.json": b"config",
    "generation_config.json": b"generation",
    "tokenizer.json": b"tokenizer",
    "chat_template.jinja": b"hello",
    "additional_chat_templates/rag.jinja": b"rag",
}
UNWANTED = {
    "modeling_tiny.py": b"import os",
    "tokenizer_tiny.py": b"import os",
    "pytorch_model.bin": b"pickle",
    "original/model.safetensors": b"other",
    "consolidated.safetensors": b"other",
    "README.md": b"hello",
    "onnx/config.json": b"{}",
}
WEIGHTS = random.Random(0).randbytes(2 * CHUNK + 12345)


@pytest.fixture(autouse=True)
def model(hub: Hub) -> None:
    """The hub has a model, and much that nobody needs."""
    hub.files = {**SMALL, **UNWANTED, "model.safetensors": WEIGHTS}


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "control_plane", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments: str) -> tuple[int, str, str]:
    """Run a command; returns its exit status, and what it printed."""
    with started(*arguments) as process:
        out, err = process.communicate(timeout=WAIT_SECONDS)
        return process.returncode, out, err


def pulled(name: str = ID) -> Path:
    status, out, err = run("pull", name)
    assert (status, err) == (0, "")
    return Path(out.strip())


def refusal(name: str = ID) -> str:
    """The one line of a download that fails."""
    return error_line(faasmoe("pull", name))


def check(folder: Path, files: Mapping[str, bytes]) -> None:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths} == files


def test_only_what_is_needed_is_downloaded(hub: Hub) -> None:
    folder = pulled()
    check(folder, {**SMALL, "model.safetensors": WEIGHTS})
    assert sorted(hub.downloads()) == sorted([*SMALL, "model.safetensors"])
    hub.requests.clear()
    assert pulled(f"{ID}@main") == pulled(f"{ID}@{COMMIT}") == folder
    assert hub.downloads() == []
    assert hub.tokens == {""}


def test_a_token_is_sent_and_not_shown(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.problem = (403, "GatedRepo")
    assert "secret" not in refusal()
    assert hub.tokens == {"Bearer hf_secret"}


def test_an_index_names_the_weights(hub: Hub) -> None:
    index = b'{"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}'
    weights = {"model.safetensors.index.json": index, "part-1.safetensors": b"1", "part-2.safetensors": b"2"}
    hub.files = {**SMALL, **UNWANTED, **weights}
    check(pulled(), {**SMALL, **weights})


def test_one_quantisation_of_gguf(hub: Hub) -> None:
    parts = {f"Q4_K_M/tiny-Q4_K_M-0000{part}-of-00002.gguf": bytes([part]) for part in (1, 2)}
    hub.files = {"tiny-Q8_0.gguf": b"GGUF8", **parts, "mmproj-F16.gguf": b"GGUF", "config.json": b"{}"}
    first = pulled(f"{ID}:q4_k_m")
    assert first.name == "tiny-Q4_K_M-00001-of-00002.gguf"
    assert hub.downloads() == list(parts)
    assert pulled(f"{ID}:tiny-Q8_0.gguf").read_bytes() == b"GGUF8"
    assert refusal() == f"{ID} has 2 models in GGUF: name one of them ({ID}:Q4_K_M, {ID}:Q8_0)"
    assert refusal(f"{ID}:Q4").startswith(f"{ID} has no model 'Q4': name one of them")


def test_a_lost_connection_is_continued(hub: Hub) -> None:
    hub.cut_at = CHUNK + 5
    assert (pulled() / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.ranges("model.safetensors") == ["", f"bytes={CHUNK}-"]


def test_a_hub_that_sends_no_parts(hub: Hub) -> None:
    hub.cut_at, hub.has_ranges = CHUNK + 5, False
    assert (pulled() / "model.safetensors").read_bytes() == WEIGHTS


def test_an_interrupted_download_is_continued(hub: Hub, cache: Path) -> None:
    hub.cut_at, hub.hang = CHUNK + 5, True
    with started("pull", ID) as process:
        wait_for_bytes(cache, CHUNK)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) != 0
    assert not (cache / "snapshots" / COMMIT / "model.safetensors").exists()
    assert (pulled() / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.ranges("model.safetensors") == ["", f"bytes={CHUNK}-"]
    assert list((cache / "blobs").glob("*.incomplete")) == []


def wait_for_bytes(cache: Path, nbytes: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not any(path.stat().st_size >= nbytes for path in cache.glob("blobs/*.incomplete")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_downloads_of_one_file(hub: Hub, cache: Path) -> None:
    hub.cut_at, hub.hang = CHUNK + 5, True
    with started("pull", ID) as process:
        wait_for_bytes(cache, CHUNK)
        assert "another run is downloading" in refusal()
        process.kill()


def test_damage_on_the_way(hub: Hub, cache: Path) -> None:
    blobs = cache / "blobs"
    blobs.mkdir(parents=True)
    sibling = next(each for each in hub.info()["siblings"] if each["rfilename"] == "model.safetensors")
    (blobs / f"{sibling['lfs']['sha256']}.incomplete").write_bytes(b"damaged")
    assert "model.safetensors was damaged on its way" in refusal()
    assert (pulled() / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ((401, ""), "if it is private, log in with `hf auth login` or set HF_TOKEN"),
        ((403, "GatedRepo"), f"{ID} is gated: ask for access on its page"),
        ((403, ""), f"the hub does not give {ID} to this token"),
        ((404, "RepoNotFound"), f"there is no file or folder {ID}, and no model {ID} on the hub"),
        ((503, ""), f"the hub answers 503 for {ID}: try again later"),
    ],
)
def test_refusals(hub: Hub, problem: tuple[int, str], message: str) -> None:
    hub.problem = problem
    assert message in refusal()
    assert hub.downloads() == []


def test_wrong_names(hub: Hub) -> None:
    assert refusal(f"{ID}@v2") == f"{ID} has no revision 'v2'"
    assert "is no file or folder here" in refusal("tiny")
    assert "is no file or folder here" in refusal("../tiny")
    hub.files = {"pytorch_model.bin": b"pickle"}
    assert "has only pickled weights" in refusal()
    hub.files = {"README.md": b""}
    assert refusal() == f"{ID} has no weights in safetensors or GGUF"


def test_a_full_disk_is_seen_before_the_download(hub: Hub) -> None:
    hub.stated_sizes["model.safetensors"] = 1 << 43
    assert refusal().startswith(f"{ID} needs 8796.1 GB more in ")
    assert hub.downloads() == []


def test_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = {"tiny.gguf": b"GGUF"}
    copy = f"where there is a network, run `hf download {ID} --local-dir FOLDER`, copy FOLDER here"
    for name, value in (("HF_HUB_OFFLINE", True), ("ENDPOINT", "http://127.0.0.1:9")):
        with monkeypatch.context() as patch:
            patch.setattr(constants, name, value)
            assert copy in refusal()
            assert copy in error_line(faasmoe("partition", ID, "out"))
            assert copy in error_line(faasmoe("up", ID))
    file = pulled()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert pulled() == file
    assert run("pull", f"{ID}@v2")[0] == 1


def test_progress_on_a_terminal(hub: Hub) -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "control_plane", "pull", ID]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=terminal, check=True, timeout=WAIT_SECONDS)
    shown = os.read(controller, 1 << 16).decode()
    os.close(controller)
    os.close(terminal)
    assert "downloading" in shown
    assert "100%" in shown

"""A chat template or a tokenizer that loops, fails or panics is one request's problem, and ends in time."""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from yarl import URL

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint import tokenizer as checkpoint_tokenizer
from control_plane.partition.checkpoint.tokenizer import read_tokenizer
from control_plane.partition.partitioner import partition
from tests.support.api.api_server import COMPLETION, ApiClient, serving
from tests.support.command_line import WAIT_SECONDS, running_command
from tests.support.models.tiny_chat_model import GRANULARITY, NAME

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
LOOPING = {"messages": [{"role": "user", "content": "loop"}], "max_tokens": 2}

Change = Callable[[Path], None]


@pytest.fixture
def changed_partition(chat_checkpoint: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """A function that makes a partition of the chat model with changed files."""

    def make(change: Change) -> Path:
        checkpoint = shutil.copytree(chat_checkpoint, tmp_path / NAME)
        change(checkpoint)
        partition(checkpoint, tmp_path / "partition", granularity=GRANULARITY)
        return tmp_path / "partition"

    return make


def template(text: str) -> Change:
    def change(checkpoint: Path) -> None:
        (checkpoint / "chat_template.jinja").write_text(text)

    return change


def tokenizer(**parts: Any) -> Change:
    """Replaces parts of tokenizer.json."""

    def change(checkpoint: Path) -> None:
        file = checkpoint / "tokenizer.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **parts}))

    return change


def test_a_template_that_loops_on_some_messages(
    changed_partition: Callable[[Change], Path], tmp_path: Path
) -> None:
    """Others are served meanwhile, and SIGTERM ends everything."""
    looping = "{{ messages[0].content }}{% if messages[0].content == 'loop' %}" + LOOP + "{% endif %}"
    folder = changed_partition(template(looping))
    options = ("--port", 0, "--gateway-port", 0, "--kv-cache-mb", 8, "--database", tmp_path / "db")
    with running_command("up", folder, *options, temporary=tmp_path) as system:
        api = ApiClient(URL(system.wait_for(r"serving on (\S+);")))
        children = psutil.Process(system.process.pid).children(recursive=True)
        with closing(api.send("POST", CHAT, {**LOOPING, "user": "one"})) as connection:
            for _ in range(5):
                assert api.answer("POST", CHAT, {**HELLO, "user": "two"}).status == 200
            started = time.monotonic()
            system.process.terminate()
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())["error"]["param"]) == (400, "messages")
        assert system.process.wait(WAIT_SECONDS) == 0
        assert time.monotonic() - started < 25
    assert psutil.wait_procs(children, timeout=5)[1] == []


def test_a_template_that_does_not_work(changed_partition: Callable[[Change], Path], tmp_path: Path) -> None:
    folder = changed_partition(template("{{ 1 + messages }}"))
    with serving(folder, tmp_path / "db", open=True) as api:
        refused = api.answer("POST", CHAT, HELLO)
        assert refused.status == 400
        assert "this model's chat template does not work: TypeError" in refused.error["message"]
        assert api.answer("POST", COMPLETION, {"prompt": "a", "max_tokens": 2}).status == 200
        assert api.answer("POST", "/tokenize", {"messages": HELLO["messages"]}).status == 400


def test_a_tokenizer_that_panics(changed_partition: Callable[[Change], Path], tmp_path: Path) -> None:
    hostile = {"type": "Split", "pattern": {"Regex": "(a+)+$|b"}, "behavior": "Isolated", "invert": False}
    folder = changed_partition(tokenizer(pre_tokenizer=hostile))
    with serving(folder, tmp_path / "db", open=True) as api:
        for path in (COMPLETION, "/tokenize"):
            failed = api.answer("POST", path, {"prompt": "a" * 28 + "c"})
            assert (failed.status, failed.error["code"]) == (500, "tokenizer_failed")
            assert "Onig" not in failed.error["message"]
            assert failed.headers["x-should-retry"] == "false"
        assert api.answer("POST", "/tokenize", {"prompt": "a"}).status == 200


def test_a_decoder_that_panics(changed_partition: Callable[[Change], Path], tmp_path: Path) -> None:
    """Each answer fails by itself, streams with an event; the server lives."""
    folder = changed_partition(tokenizer(decoder={"type": "Strip", "content": "t", "start": 0, "stop": 9}))
    ask = {"prompt": [5], "max_tokens": 2}
    with serving(folder, tmp_path / "db", open=True) as api:
        vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        failed = api.answer("POST", "/detokenize", {"tokens": [vocabulary["t"]]})
        assert (failed.status, failed.error["code"]) == (500, "tokenizer_failed")
        for stream in (False, True):
            echoed = {**ask, "prompt": [vocabulary["t"]], "echo": True, "stream": stream}
            assert api.answer("POST", COMPLETION, echoed).status == 500
        assert api.answer("GET", "/health").status == 200


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
            "PanicException: Precompiled",
        ),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}, "out of vocabulary"),
        ({"model": 5}, ""),
        ({"pre_tokenizer": {"type": "Nothing"}}, ""),
    ],
)
def test_a_tokenizer_that_cannot_be_loaded(
    chat_checkpoint: Path, tmp_path: Path, parts: dict[str, Any], problem: str
) -> None:
    folder = shutil.copytree(chat_checkpoint, tmp_path / NAME)
    tokenizer(**parts)(folder)
    with pytest.raises(PartitionError, match=f"cannot load the tokenizer in .*{problem}"):
        read_tokenizer(folder)


@pytest.mark.parametrize(
    "text", ["", "[", "[" * 100_000, '{"a":' * 5000, "\ud800", '{"version": ' + "1" * 5000 + "}", "null"]
)
def test_a_tokenizer_s_file_that_is_hostile(chat_checkpoint: Path, tmp_path: Path, text: str) -> None:
    folder = shutil.copytree(chat_checkpoint, tmp_path / NAME)
    (folder / "tokenizer.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(PartitionError, match="cannot load the tokenizer in"):
        read_tokenizer(folder)


def test_a_tokenizer_s_file_that_is_huge(chat_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_tokenizer, "MAX_TOKENIZER_BYTES", 1000)
    with pytest.raises(PartitionError, match=r"tokenizer\.json has more than 1000 bytes"):
        read_tokenizer(chat_checkpoint)


def test_a_tokenizer_that_is_stored_as_more_than_it_was_read_from(
    chat_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(chat_checkpoint, tmp_path / NAME)
    tokenizer_file = folder / "tokenizer.json"
    content = json.loads(tokenizer_file.read_text())
    tokenizer_file.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")))
    # The chat template comes from another file.
    largest = tokenizer_file.stat().st_size
    monkeypatch.setattr(checkpoint_tokenizer, "MAX_TOKENIZER_BYTES", largest)
    with pytest.raises(PartitionError, match=f"cannot load the tokenizer in .*: it has more than {largest}"):
        read_tokenizer(folder)

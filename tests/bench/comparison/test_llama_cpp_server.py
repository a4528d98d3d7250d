"""A llama.cpp server is started with the checkpoint's weights, and stopped. Failures are reported.

The program is a stand-in: a script that takes llama.cpp's options, and becomes ready like it.
"""

import asyncio
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import psutil
import pytest

from bench.comparison.strategies.llama_cpp_server import llama_cpp_server
from bench.support import requests
from control_plane.errors import FaaSMoEError, UnsupportedModel
from tests.support.models.checkpoints import edit_config, save_checkpoint, tiny_model

LOADS = """
import http.server, json, sys
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert open(options["--model"], "rb").read(4) == b"GGUF"
polls = 0

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global polls
        polls += 1
        self.send_response(503 if polls < 3 else 200)
        self.end_headers()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["return_tokens"] and body["verbose"]
        self.send_response(200)
        self.end_headers()
        for token in range(body["max_tokens"]):
            self.event({"choices": [{"text": ""}], "__verbose": {"tokens": [token]}})
        self.event({"choices": [{"text": "", "finish_reason": "length"}], "__verbose": {"tokens": []}})

    def event(self, value):
        self.wfile.write(f"data: {json.dumps(value)}\\n\\n".encode())

http.server.HTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()
"""
FAILS = """
import sys
sys.exit("0.00.1 I loading\\n0.00.2 E srv load_model: failed to load model\\n0.00.3 I cleaning up")
"""


def program(folder: Path, script: str) -> str:
    file = folder / "llama-server"
    file.write_text(f"#!{sys.executable}\n{script}")
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = tiny_model("qwen2_moe", hidden_size=64, num_attention_heads=4)
    return save_checkpoint(model, tmp_path / "model")


def served(script: str, checkpoint: Path) -> AbstractAsyncContextManager[tuple[int, str]]:
    folder = checkpoint.parent
    return llama_cpp_server(program(folder, script), checkpoint, folder / "model.gguf", 1, 64, 30.0)


def test_the_server_runs_until_the_end_of_the_context(checkpoint: Path) -> None:
    async def use() -> int:
        async with served(LOADS, checkpoint) as (pid, url), requests.session() as client:
            fields = ("return_tokens", "verbose")
            timing = await requests.stream(client, url, None, [5, 6], 3, token_id_fields=fields)
            assert timing.token_ids == [0, 1, 2]
            assert len(timing.tokens) == 3
            assert psutil.pid_exists(pid)
            return pid

    assert not psutil.pid_exists(asyncio.run(use()))


def test_the_error_has_the_reason_from_the_log(checkpoint: Path) -> None:
    async def use() -> None:
        async with served(FAILS, checkpoint):
            pass

    with pytest.raises(FaaSMoEError, match=r"has ended: .* E srv load_model: failed to load model"):
        asyncio.run(use())


def test_a_crash_of_the_server_is_reported(checkpoint: Path) -> None:
    async def use() -> None:
        async with served(LOADS, checkpoint) as (pid, url), requests.session() as client:
            process = psutil.Process(pid)
            process.kill()
            await requests.stream(client, url, None, [5, 6], 3)

    with pytest.raises(FaaSMoEError, match="server has ended: "):
        asyncio.run(use())


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tiny_model("olmoe"), tmp_path / "model")
    edit_config(folder, model_type="jamba")

    async def use() -> None:
        async with served(LOADS, folder):
            pass

    with pytest.raises(UnsupportedModel, match="'jamba' is not written for"):
        asyncio.run(use())

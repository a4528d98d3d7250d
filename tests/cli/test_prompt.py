"""`faasmoe prompt` and `faasmoe status`, against a control plane."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner

from control_plane.cli.main import main
from control_plane.cli.status import status_lines
from functions.kernels import load_kernel
from tests.support.api.api_server import ApiClient, add_tenant, closed_port
from tests.support.command_line import error_line, faasmoe, usage_error
from tests.support.models.tiny_chat_model import CONTEXT_LENGTH, EXPERTS, NAME

ASK = ("--tenant", "me", "--max-tokens", 8)
KEY = "fm-a-key-of-a-tenant"


@contextmanager
def server_that_answers(body: bytes, status: int = 200, **headers: str) -> Iterator[str]:
    """Run a server that sends one fixed response, and yield its address.

    AUTHORIZATION and USER in the body are replaced with the request's header and field.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            authorization = self.headers.get("Authorization", "no key")
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            said = body.replace(b"AUTHORIZATION", authorization.encode())
            self.wfile.write(said.replace(b"USER", asked["user"].encode()))

        def log_message(self, *_: object) -> None:
            """Log nothing, so that stderr has only the command's output."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        thread.join()


def test_a_prompt_gets_the_api_s_answer(api: ApiClient) -> None:
    messages = [{"role": "user", "content": "what is on the mat?"}]
    asked = api.post("/v1/chat/completions", messages=messages, max_tokens=8, temperature=0)
    text = asked["choices"][0]["message"]["content"]
    for arguments, stdin in ((["what is on the mat?"], None), (["-"], b"what is on the mat?")):
        result = faasmoe("prompt", *arguments, *ASK, "--server", api.url, stdin=stdin)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == text + "\n"

    answer = json.loads(faasmoe("prompt", "what is on the mat?", *ASK, "--json", "--server", api.url).stdout)
    assert (answer["text"], answer["finish_reason"]) == (text, "length")
    assert answer["usage"]["completion_tokens"] == 8
    assert 0 < answer["time_to_first_token"] < answer["seconds"]
    assert answer["tokens_per_second"] > 0


def test_a_raw_prompt_is_continued(api: ApiClient) -> None:
    text = api.post("/v1/completions", prompt="the cat", max_tokens=8, temperature=0)["choices"][0]["text"]
    assert faasmoe("prompt", "the cat", *ASK, "--raw", "--server", api.url).stdout == text + "\n"


def test_a_seed_makes_a_sampled_answer_repeatable(api: ApiClient) -> None:
    def answer(seed: int) -> str:
        hot = ("--temperature", 2, "--seed", seed, "--server", api.url)
        return faasmoe("prompt", "the cat", "--tenant", "me", "--max-tokens", 24, *hot).stdout

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


@pytest.mark.parametrize("arguments", [[""], [" \n"], ["-"]])
def test_an_empty_prompt(arguments: list[str]) -> None:
    assert usage_error(faasmoe("prompt", *arguments, *ASK, stdin=b"\n")) == "the prompt is empty"


def test_a_prompt_that_is_not_utf_8() -> None:
    assert "standard input is not UTF-8" in usage_error(faasmoe("prompt", "-", *ASK, stdin=b"caf\xe9"))


def received(*options: object, **environment: str) -> str:
    """The key and tenant that a server receives, as text."""
    event = {
        "choices": [{"delta": {"content": "AUTHORIZATION, USER"}, "finish_reason": "stop"}],
        "usage": {"n": 1},
    }
    with server_that_answers(f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode()) as url:
        arguments = ["prompt", "hello", "--server", url, *map(str, options)]
        result = CliRunner(env={"FAASMOE_API_KEY": None, **environment}).invoke(main, arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.strip()


def test_key_and_tenant_of_a_request(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert received() == "no key, default"
    assert received("--tenant", "me") == "no key, me"
    assert received("--key-file", file) == f"Bearer {KEY}, default"
    assert received(FAASMOE_API_KEY=KEY[::-1]) == f"Bearer {KEY[::-1]}, default"
    assert received("--key-file", file, FAASMOE_API_KEY=KEY[::-1]) == f"Bearer {KEY}, default"
    assert received(FAASMOE_API_KEY="") == "no key, default"


@pytest.mark.parametrize("key", ["", "short", "with a space in its midst", "kéy-that-is-not-all-ascii"])
def test_bad_keys(tmp_path: Path, key: str) -> None:
    file = tmp_path / "key"
    file.write_text(key)
    assert error_line(faasmoe("prompt", "hello", "--key-file", file)).startswith(f"the key in {file} ")
    if key:
        result = CliRunner(env={"FAASMOE_API_KEY": key}).invoke(main, ["prompt", "hello"])
        assert error_line(result).startswith("the key in $FAASMOE_API_KEY ")


def test_a_missing_key_file(tmp_path: Path) -> None:
    message = error_line(faasmoe("prompt", "hello", "--key-file", tmp_path / "none"))
    assert message.startswith(f"cannot read the key file {tmp_path / 'none'}")


@pytest.mark.parametrize(
    ("status", "headers", "advice"),
    [
        (401, {}, " (set the key with --key-file or $FAASMOE_API_KEY)"),
        (429, {"Retry_After": "7"}, "; try again in 7 s"),
        (503, {"Retry_After": "1"}, "; try again in 1 s"),
        (429, {"x_should_retry": "false"}, "; trying again does not help"),
        (429, {"Retry_After": "soon"}, ""),
        (503, {}, ""),
        (400, {"Retry_After": "1"}, ""),
        (404, {}, ""),
        (500, {}, ""),
    ],
)
def test_refusals_are_one_line_with_advice(status: int, headers: dict[str, str], advice: str) -> None:
    body = json.dumps({"error": {"message": "not now", "type": "t", "param": None, "code": None}}).encode()
    with server_that_answers(body, status, **headers) as url:
        message = error_line(faasmoe("prompt", "hello", "--server", url))
    assert message == f"not now{advice}"


@pytest.mark.parametrize(
    ("option", "value"), [("--max-tokens", 0), ("--temperature", -1), ("--seed", -1), ("--seed", "x")]
)
def test_bad_options_of_a_prompt(option: str, value: object) -> None:
    message = usage_error(faasmoe("prompt", "hello", *ASK, option, value))
    assert message.startswith(f"Invalid value for '{option}': ")


def test_a_prompt_longer_than_the_context(api: ApiClient) -> None:
    message = error_line(faasmoe("prompt", "x" * CONTEXT_LENGTH, *ASK, "--server", api.url))
    assert "This model's maximum context length is " in message


@pytest.mark.parametrize("command", [["prompt", "hello", *ASK], ["status"]])
def test_an_unreachable_control_plane(command: list[object]) -> None:
    with closed_port() as port:
        message = error_line(faasmoe(*command, "--server", f"http://127.0.0.1:{port}"))
    assert message.startswith(f"no FaaSMoE control plane answers at http://127.0.0.1:{port}")
    assert "not an address like" in error_line(faasmoe(*command, "--server", "localhost"))


@pytest.mark.parametrize("command", [["prompt", "hello", *ASK], ["status"]])
def test_a_gateway_in_place_of_the_control_plane(api: ApiClient, command: list[object]) -> None:
    gateway = api.status()["gateways"][0]["url"]
    assert error_line(faasmoe(*command, "--server", gateway)).startswith(f"{gateway} answered 404")


@pytest.mark.parametrize(
    "body", [b"<html>", b'data: {"choices": [{"delta": {"content": "Hel"}, "finish_reason": null}]}\n\n']
)
def test_an_incomplete_answer(body: bytes) -> None:
    with server_that_answers(body) as url:
        result = faasmoe("prompt", "hello", *ASK, "--server", url)
    assert error_line(result) == f"the answer of {url} is incomplete"


def test_status_as_a_table(api: ApiClient) -> None:
    api.post("/v1/completions", prompt="the cat", max_tokens=2)
    lines = faasmoe("status", "--server", api.url).output.splitlines()
    assert lines[0].startswith(f"model {NAME}, fingerprint ")
    assert f", {load_kernel().name} kernel, 0 running, 0 waiting, KV cache 0% used" in lines[1]
    assert lines[2].startswith("gateway: http://127.0.0.1:")
    assert lines[3].startswith("memory: ")
    assert " used of no budget (least " in lines[3]
    assert lines[5].split("  ")[0] == "function"
    assert len({len(line) for line in lines[5:]}) <= 2
    for line, experts in zip(lines[6:], EXPERTS, strict=True):
        assert line.startswith(f"{NAME}-l")
        assert line.split()[1] == "1/1"
        assert line.split()[2] == load_kernel().name
        assert line.split()[3].endswith(f"/{experts}")
        assert line.endswith(" s ago")


def test_status_warns_of_numpy(api: ApiClient) -> None:
    report = api.status()
    assert not [line for line in status_lines(report) if line.startswith("warning")]
    report["kernel"] = report["functions"][1]["kernel"] = "numpy"
    (warning,) = (line for line in status_lines(report) if line.startswith("warning"))
    assert warning.endswith(f": the control plane, {report['functions'][1]['function']}")


def test_status_as_json(api: ApiClient) -> None:
    report = json.loads(faasmoe("status", "--json", "--server", api.url).output)
    assert report["model"] == NAME
    assert report.keys() == api.status().keys()
    assert [function["experts"] for function in report["functions"]] == EXPERTS


def test_an_operator_s_status_has_the_gateway_s_address(
    server: ApiClient, database: Path, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(add_tenant(database, "status-operator", operator=True))
    shown = {
        line
        for key in ([], ["--key-file", tmp_path / "key"])
        for line in faasmoe("status", *key, "--server", server.url).output.splitlines()
        if line.startswith("gateway: ")
    }
    url = server.with_key((tmp_path / "key").read_text()).status()["gateways"][0]["url"]
    assert shown == {"gateway: its address is for operators only", f"gateway: {url}"}

"""`faasmoe prompt` and `faasmoe status`, which ask a control plane."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from tests.api_server import ApiClient, closed_port
from tests.command_line import error_line, faasmoe, usage_error
from tests.tiny_chat_model import CONTEXT_LENGTH, EXPERTS, NAME

pytest_plugins = "tests.chat_fixtures"

ASK = ("--tenant", "me", "--max-tokens", 8)


@contextmanager
def server_that_answers(body: bytes) -> Iterator[str]:
    """The address of a server that is no control plane, or one that dies: this is all that it ever says."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep stderr clean."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        thread.join()


def test_a_prompt_is_answered_as_the_api_does(api: ApiClient) -> None:
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


def test_a_seed_makes_a_hot_answer_repeatable(api: ApiClient) -> None:
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


def test_a_prompt_without_a_tenant() -> None:
    assert usage_error(faasmoe("prompt", "hello")) == "Missing option '--tenant'."


@pytest.mark.parametrize(
    ("option", "value"), [("--max-tokens", 0), ("--temperature", -1), ("--seed", -1), ("--seed", "x")]
)
def test_bad_options_of_a_prompt(option: str, value: object) -> None:
    message = usage_error(faasmoe("prompt", "hello", *ASK, option, value))
    assert message.startswith(f"Invalid value for '{option}': ")


def test_a_prompt_that_is_longer_than_the_context(api: ApiClient) -> None:
    message = error_line(faasmoe("prompt", "x" * CONTEXT_LENGTH, *ASK, "--server", api.url))
    assert f"the model's context is {CONTEXT_LENGTH} tokens" in message


@pytest.mark.parametrize("command", [["prompt", "hello", *ASK], ["status"]])
def test_a_control_plane_that_is_away(command: list[object]) -> None:
    with closed_port() as port:
        message = error_line(faasmoe(*command, "--server", f"http://127.0.0.1:{port}"))
    assert message.startswith(f"no FaaSMoE control plane answers at http://127.0.0.1:{port}")
    assert "not an address like" in error_line(faasmoe(*command, "--server", "localhost"))


@pytest.mark.parametrize("command", [["prompt", "hello", *ASK], ["status"]])
def test_a_gateway_in_place_of_the_control_plane(api: ApiClient, command: list[object]) -> None:
    gateway = api.status()["gateway"]["url"]
    assert error_line(faasmoe(*command, "--server", gateway)).startswith(f"{gateway} answered 404")


@pytest.mark.parametrize(
    "body", [b"<html>", b'data: {"choices": [{"delta": {"content": "Hel"}, "finish_reason": null}]}\n\n']
)
def test_an_answer_that_breaks_off(body: bytes) -> None:
    with server_that_answers(body) as url:
        result = faasmoe("prompt", "hello", *ASK, "--server", url)
    assert error_line(result) == f"{url} ended its answer before it was whole"


def test_status_as_a_table(api: ApiClient) -> None:
    api.post("/v1/completions", prompt="the cat", max_tokens=2)
    lines = faasmoe("status", "--server", api.url).output.splitlines()
    assert lines[0].startswith(f"model {NAME}, fingerprint ")
    assert "0 running, 0 waiting, KV cache 0% used" in lines[1]
    assert lines[2].startswith("gateway: http://127.0.0.1:")
    assert lines[4].split("  ")[0] == "function"
    assert len({len(line) for line in lines[4:]}) <= 2
    for line, experts in zip(lines[5:], EXPERTS, strict=True):
        assert line.startswith(f"{NAME}-l")
        assert line.split()[1] == "1/1"
        assert line.split()[2].endswith(f"/{experts}")
        assert line.endswith(" s ago")


def test_status_as_json(api: ApiClient) -> None:
    report = json.loads(faasmoe("status", "--json", "--server", api.url).output)
    assert report["model"] == NAME
    assert report.keys() == api.status().keys()
    assert [function["experts"] for function in report["functions"]] == EXPERTS

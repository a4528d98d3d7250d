"""Errors of the system have OpenAI's form, reveal no internals, and affect no other request."""

import itertools
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from yarl import URL

from control_plane.api.openai.errors import KINDS, domain_error_body
from control_plane.api.openai.headers import error_headers
from control_plane.api.text.codec import TextCodec
from control_plane.app import control_plane
from control_plane.config import ServeConfig
from control_plane.errors import (
    FaaSMoEError,
    Overloaded,
    RequestTimeout,
    RetryLater,
    ShuttingDown,
    StorageFull,
    TokenizerError,
)
from control_plane.faas.gateway_access import GatewayAccess
from control_plane.partition.partitioner import partition
from tests.support.api.api_server import IDLE, ApiClient, closed_port, eventually, in_thread, serving
from tests.support.models.tiny_chat_model import GRANULARITY, NAME

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def lonely_api(chat_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiClient]:
    """A server whose gateway is unreachable, and whose model has no chat template."""
    parent = tmp_path_factory.mktemp("untemplated")
    checkpoint = shutil.copytree(chat_checkpoint, parent / NAME)
    (checkpoint / "chat_template.jinja").unlink()
    folder = parent / "partition"
    partition(checkpoint, folder, granularity=GRANULARITY)
    config = ServeConfig(
        port=0, kv_cache_mb=1, threads=1, invocation_deadline=0.2, open=True, database=str(parent / "db")
    )
    with closed_port() as port:
        gateway_url = URL.build(scheme="http", host="127.0.0.1", port=port)
        with in_thread(control_plane(folder, config, [GatewayAccess(gateway_url)])) as url:
            yield ApiClient(url)


INTERNALS = "function demo-l00-g00: http://10.0.0.7:8080 said /var/lib/faasmoe/faasmoe.db"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_errors_of_the_server_s_reveal_nothing(kind: type[FaaSMoEError]) -> None:
    """The text of a server's error is for the log, unless it was written for clients."""
    error = kind.__new__(kind)
    Exception.__init__(error, INTERNALS)
    error_of_client = KINDS[kind].status < 500
    for_clients = {ShuttingDown, Overloaded, RequestTimeout, StorageFull}
    message = domain_error_body(error, "id-5")["error"]["message"]
    assert (message == INTERNALS) == (error_of_client or kind in for_clients)
    assert (message.endswith(" id-5") and "demo" not in message) == (message != INTERNALS)
    if isinstance(error, RetryLater):
        error.retry_after = 1.0
    if KINDS[kind].status == 503:
        assert int(error_headers(error)["Retry-After"])


def test_a_model_without_a_chat_template(lonely_api: ApiClient) -> None:
    error = lonely_api.refusal(CHAT, {"messages": HELLO})
    assert error["param"] == "messages"
    assert "no chat template; use /v1/completions" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_functions_that_are_unreachable(
    lonely_api: ApiClient, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream gets the same status: it has not begun yet. Addresses are for the log."""
    caplog.set_level("WARNING", "control_plane.api")
    answer = lonely_api.answer("POST", COMPLETION, {"prompt": "a", "stream": stream})
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert answer.error["code"] == "function_unavailable"
    assert answer.error["message"] == (
        "a function of the model could not be reached; the server's log has the reason, by the request id "
        + answer.headers["x-request-id"]
    )
    (record,) = [each for each in caplog.records if each.msg == "not served: %s"]
    assert vars(record)["request_id"] == answer.headers["x-request-id"]
    assert "function tiny-chat-" in record.getMessage()
    assert "cannot be reached: Connection refused" in record.getMessage()
    assert lonely_api.engine() == IDLE


def test_an_error_in_mid_stream_has_a_reference(
    chat_partition: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its event has OpenAI's form and no internals; the log has them, by the same request id."""
    endless = {"prompt": "a", "max_tokens": 4000, "ignore_eos": True}
    original = TextCodec._text
    calls = itertools.count()

    def panicking(codec: TextCodec, token_ids: list[int], skip_special_tokens: bool) -> str:
        if next(calls) > 50:
            raise TokenizerError(INTERNALS)
        return original(codec, token_ids, skip_special_tokens)

    with serving(chat_partition, tmp_path / "db", open=True) as api:
        monkeypatch.setattr(TextCodec, "_text", panicking)
        *events, last = api.stream(COMPLETION, **endless)
        assert events
        assert (last["error"]["code"], last["error"]["type"]) == ("tokenizer_failed", "server_error")
        request_id = last["error"]["message"].rpartition(" ")[2]
        (record,) = [each for each in caplog.records if each.msg == "not served: %s"]
        assert vars(record)["request_id"] == request_id
        assert INTERNALS in record.getMessage()
        assert INTERNALS not in str(last)
        eventually(api.engine, IDLE)


def test_a_request_that_takes_too_long(chat_partition: Path, tmp_path: Path) -> None:
    endless = {"prompt": "a", "max_tokens": 4000, "ignore_eos": True}
    with serving(chat_partition, tmp_path / "db", open=True, request_timeout=0.5) as api:
        error = api.refusal(COMPLETION, endless, status=504)
        assert error["code"] == "timeout"
        *events, last = api.stream(COMPLETION, **endless)
        assert events
        assert all(event["choices"] for event in events)
        assert last == {"error": error}
        eventually(api.engine, IDLE)


def test_status_without_a_gateway(lonely_api: ApiClient) -> None:
    status, report = lonely_api.ask("GET", "/status")
    assert status == 200
    assert "no OpenFaaS gateway answers at" in report["gateways"][0]["error"]
    assert not any(function["deployed"] for function in report["functions"])
    with closing(lonely_api.send("GET", "/health")) as connection:
        assert connection.getresponse().status == 200

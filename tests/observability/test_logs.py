"""Log lines, read back from standard error as a log collector would read them."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from control_plane.observability.logs import configure, log_kernel, log_request
from control_plane.observability.request_record import RequestRecord

RECORD = RequestRecord(
    tenant="acme",
    request_id="cmpl-1",
    path="/v1/completions",
    status=200,
    finish_reasons=("stop",),
    prompt_tokens=7,
    cached_tokens=3,
    generated_tokens=5,
    queue_seconds=0.0125,
    time_to_first_token=0.05,
    inter_token_latencies=(0.01,),
    seconds=0.9,
    expert_invocations=12.5,
    expert_seconds=0.125,
)

FORGERIES = [
    'x\n{"level": "ERROR", "message": "forged"}',
    "x\r\nforged",
    "\x1b[2Jforged\x07\x00\x7f",
    "one\u2028two\u2029three\x85four\x0bfive",
    '"}{"',
    "\ud800",
]

ReadLog = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def read_log(capsys: pytest.CaptureFixture[str]) -> Iterator[ReadLog]:
    """A function that returns the lines logged since its last call; each must be a JSON object."""
    root, ours = logging.getLogger(), logging.getLogger("control_plane")
    handlers, levels = list(root.handlers), (root.level, ours.level)

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    yield read
    logging.captureWarnings(False)
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def test_a_request_is_one_line(read_log: ReadLog) -> None:
    configure("info")
    before = datetime.now(UTC)
    log_request(RECORD, None)
    (line,) = read_log()
    assert before <= datetime.fromisoformat(line.pop("time")) <= datetime.now(UTC)
    assert line == {
        "level": "INFO",
        "logger": "control_plane.observability.logs",
        "message": "request ended",
        "request_id": "cmpl-1",
        "tenant": "acme",
        "path": "/v1/completions",
        "status": 200,
        "finish_reasons": ["stop"],
        "prompt_tokens": 7,
        "generated_tokens": 5,
        "queue_ms": 12.5,
        "ttft_ms": 50.0,
        "duration_ms": 900.0,
        "expert_invocations": 12.5,
        "expert_ms": 125.0,
    }


def test_the_time_is_in_utc(read_log: ReadLog) -> None:
    configure("info")
    log_request(RECORD, None)
    assert read_log()[0]["time"].endswith("+00:00")


def test_the_prompt_is_logged_only_if_it_is_passed(read_log: ReadLog) -> None:
    configure("debug")
    log_request(RECORD, None)
    log_request(RECORD, "my secret diary")
    without, with_prompt = read_log()
    assert "prompt" not in without
    assert with_prompt["prompt"] == "my secret diary"


@pytest.mark.parametrize("forgery", FORGERIES)
def test_text_cannot_start_a_line_or_send_terminal_codes(
    read_log: ReadLog, forgery: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("info")
    logger = logging.getLogger("control_plane.test")
    logger.info("%s", forgery, extra={"tenant": forgery})
    printed = capsys.readouterr().err
    assert printed.endswith("\n")
    assert printed[:-1].isascii()
    assert printed[:-1].isprintable()
    line = json.loads(printed)
    assert (line["message"], line["tenant"]) == (forgery, forgery)
    assert line["level"] == "INFO"


@pytest.mark.parametrize("forgery", FORGERIES)
def test_an_exception_cannot_start_a_line(read_log: ReadLog, forgery: str) -> None:
    configure("info")
    try:
        raise ValueError(forgery)
    except ValueError:
        logging.getLogger("control_plane.test").exception("it failed")
    (line,) = read_log()
    assert (line["level"], line["message"]) == ("ERROR", "it failed")
    assert line["exception"].startswith("Traceback")
    assert f"ValueError: {forgery}" in line["exception"]


@pytest.mark.parametrize(
    ("level", "ours", "theirs"),
    [
        ("debug", ["DEBUG", "INFO", "WARNING", "ERROR"], ["DEBUG", "INFO", "WARNING", "ERROR"]),
        ("info", ["INFO", "WARNING", "ERROR"], ["WARNING", "ERROR"]),
        ("warning", ["WARNING", "ERROR"], ["WARNING", "ERROR"]),
        ("error", ["ERROR"], ["ERROR"]),
    ],
)
def test_levels(read_log: ReadLog, level: str, ours: list[str], theirs: list[str]) -> None:
    configure(level)
    for name, expected in (("control_plane.engine.test", ours), ("aiohttp.test", theirs)):
        for severity in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger(name).log(severity, "hello")
        lines = read_log()
        assert [line["level"] for line in lines] == expected
        assert {line["logger"] for line in lines} == {name}


def test_the_last_configuration_applies_and_lines_are_logged_once(read_log: ReadLog) -> None:
    for level in ("debug", "error", "info", "info"):
        configure(level)
    log_request(RECORD, None)
    assert len(read_log()) == 1


def test_warnings_of_libraries_are_logged(read_log: ReadLog) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure("info")
        warnings.warn("old\nways", DeprecationWarning, stacklevel=1)
    (line,) = read_log()
    assert line["level"] == "WARNING"
    assert "old\nways" in line["message"]


def test_the_kernel_is_named_and_numpy_is_warned_of(read_log: ReadLog) -> None:
    configure("info")
    log_kernel("avx2")
    log_kernel("numpy")
    named, warned = read_log()
    assert (named["level"], named["message"]) == ("INFO", "computing with the avx2 kernel")
    assert warned["level"] == "WARNING"
    assert "NumPy" in warned["message"]

"""What clients send: the body of /v1/batches, and the lines of an input file."""

from collections.abc import Collection, Iterator
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

from msgspec import Meta, Struct

from control_plane.api.batches.records import LineError
from control_plane.api.bodies.reading import decode_json
from control_plane.api.bodies.values import UNICODE
from control_plane.api.receiving import MAX_BODY_BYTES
from control_plane.errors import BadRequest
from control_plane.validation import Invalid, convert

MAX_LINES = 50_000
"""Most requests of one batch, as at OpenAI."""
MAX_LINE_BYTES = MAX_BODY_BYTES
"""Longest line."""
MAX_ERRORS = 100
"""Most faults of one input file that are reported."""

Kind = TypeVar("Kind")

_Short = Annotated[str, Meta(max_length=512, description="a string of at most 512 characters")]
_Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16, description="at most 16 pairs of strings, of up to 64 and 512 characters"),
]


class BatchBody(Struct, forbid_unknown_fields=True):
    """The body of POST /v1/batches."""

    input_file_id: _Short
    endpoint: _Short
    completion_window: Literal["24h"]
    metadata: _Metadata | None = None


class Line(Struct, forbid_unknown_fields=True):
    """One request of a batch."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512, pattern=UNICODE)]
    method: Literal["POST"]
    url: _Short
    body: dict[str, Any]


def read_batch(body: Any, endpoints: Collection[str]) -> BatchBody:
    """Read the body of POST /v1/batches. Raises `BadRequest`."""
    batch = _converted(body, BatchBody)
    if batch.endpoint not in endpoints:
        raise BadRequest(f"endpoint: must be one of {', '.join(endpoints)}", "endpoint")
    return batch


def _converted(data: Any, kind: type[Kind]) -> Kind:
    try:
        return convert(data, kind)
    except Invalid as error:
        raise BadRequest(str(error), error.path.split(".")[0].split("[")[0] or None) from error


def lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines of an input file that are not blank, with their numbers from 1. A long line is cut."""
    number = 0
    while text := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if text.strip():
            yield number, text
        if len(text) > MAX_LINE_BYTES:
            return


def read_line(text: bytes, endpoint: str) -> Line:
    """Read a line of a batch for an endpoint. Raises `BadRequest`."""
    if len(text) > MAX_LINE_BYTES:
        raise BadRequest(f"the line has more than {MAX_LINE_BYTES} bytes")
    line = _converted(decode_json(text), Line)
    if line.url != endpoint:
        raise BadRequest(f"url: must be the batch's endpoint, {endpoint}", "url")
    return line


def check_lines(file: BinaryIO, endpoint: str) -> tuple[int, list[LineError]]:
    """The number of requests in an input file, and the first of its faults."""
    total = 0
    seen: set[str] = set()
    faults: list[LineError] = []
    for number, text in lines(file):
        total += 1
        if total > MAX_LINES:
            return total, [LineError("too_many_requests", f"the file has more than {MAX_LINES} requests")]
        try:
            line = read_line(text, endpoint)
            if line.custom_id in seen:
                raise BadRequest("custom_id: another line of the file has the same", "custom_id")
            seen.add(line.custom_id)
        except BadRequest as error:
            faults.append(LineError("invalid_request", str(error), number, error.param))
            if len(faults) == MAX_ERRORS:
                break
    if not total:
        faults.append(LineError("empty_file", "the file has no requests"))
    return total, faults

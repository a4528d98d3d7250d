"""What a response may take: memory, header, body. The reader gets the bytes in pieces, as from a socket."""

import gc
import weakref
from collections.abc import Callable

import httptools
import pytest

from control_plane.faas.wire.response_reader import (
    MAX_ERROR_BYTES,
    MAX_HEADER_BYTES,
    HeaderTooLarge,
    HttpResponse,
    ResponseReader,
)

BOUND = 1000
PIECE = 4096


def fed(data: bytes, piece: int = PIECE, bound: int = BOUND) -> tuple[ResponseReader, int]:
    """A reader after some data, and how many bytes it has taken of it."""
    reader = ResponseReader(bound)
    buffer = memoryview(bytearray(piece))
    taken = 0
    while reader.response is None and taken < len(data):
        place = reader.place(buffer)
        size = min(len(place), len(data) - taken)
        place[:size] = data[taken : taken + size]
        reader.take(place[:size])
        taken += size
    return reader, taken


def response(data: bytes, piece: int = PIECE) -> HttpResponse | None:
    return fed(data, piece)[0].response


def whole(status: int, body: bytes, *headers: str) -> bytes:
    lines = (f"HTTP/1.1 {status} Word", f"Content-Length: {len(body)}", *headers, "", "")
    return "\r\n".join(lines).encode() + body


def chunked(body: bytes, size: int, extension: bytes = b"") -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    parts = (body[start : start + size] for start in range(0, len(body), size))
    return head + b"".join(b"%x%s\r\n%s\r\n" % (len(p), extension, p) for p in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("piece", [1, 7, 100, PIECE])
@pytest.mark.parametrize("length", [0, 1, 500, BOUND])
@pytest.mark.parametrize(
    "encode", [lambda body: whole(200, body), lambda body: chunked(body, 100), lambda body: chunked(body, 3)]
)
def test_bodies_up_to_the_bound_are_read(length: int, piece: int, encode: Callable[[bytes], bytes]) -> None:
    body = bytes(number % 251 for number in range(length))
    for before in (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 3):
        data = before + encode(body)
        reader, taken = fed(data, piece)
        assert reader.response == HttpResponse(200, bytearray(body))
        assert reader.keep_alive
        assert taken == len(data)


@pytest.mark.parametrize("announced", [BOUND + 1, 1 << 30, 1 << 62])
def test_an_announced_body_beyond_the_bound_is_not_read(announced: int) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % announced
    reader, taken = fed(head + bytes(100_000), piece=len(head))
    assert taken == len(head)
    assert reader.response == HttpResponse(200, bytearray(), truncated=True)
    assert not reader.keep_alive


def test_a_chunked_body_beyond_the_bound_is_not_read() -> None:
    reader, taken = fed(chunked(bytes(1_000_000), 500))
    assert taken <= PIECE
    assert reader.response is not None
    assert reader.response.truncated
    assert len(reader.response.body) <= BOUND
    assert not reader.keep_alive


def test_chunks_with_endless_extensions_are_not_read() -> None:
    reader, taken = fed(chunked(bytes(BOUND), 1, extension=b";" + b"a" * 200), piece=100)
    assert taken < MAX_HEADER_BYTES + 3 * BOUND
    assert reader.response is not None
    assert reader.response.truncated


def test_errors_are_read_up_to_some_kilobytes_whatever_the_bound() -> None:
    assert response(whole(500, bytes(MAX_ERROR_BYTES))) == HttpResponse(500, bytearray(MAX_ERROR_BYTES))
    cut = response(whole(500, bytes(MAX_ERROR_BYTES + 1)))
    assert cut is not None
    assert (cut.status, cut.truncated) == (500, True)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000,
        b"HTTP/1.1 102 Processing\r\nX: y\r\n\r\n" * 100_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000,
        b"HTTP/1.1 200 " + b"y" * 1_000_000,
    ],
    ids=["continue", "processing", "headers", "header", "reason"],
)
def test_endless_headers_are_refused(data: bytes) -> None:
    reader = ResponseReader(BOUND)

    def take_all() -> None:
        for start in range(0, MAX_HEADER_BYTES + 2 * PIECE, PIECE):
            reader.take(memoryview(data)[start : start + PIECE])

    with pytest.raises((HeaderTooLarge, httptools.HttpParserError)):
        take_all()


def test_a_response_too_many_ends_the_connection() -> None:
    once = whole(200, b"body")
    reader, _ = fed(once + whole(200, b"more"))
    assert reader.response == HttpResponse(200, bytearray(b"body"))
    assert not reader.keep_alive
    assert fed(once)[0].keep_alive
    assert not fed(whole(200, b"body", "Connection: close"))[0].keep_alive


@pytest.mark.parametrize("data", [whole(200, b"body"), whole(200, b"body")[:-2], b"HTTP/1.1 2"])
def test_a_closed_reader_is_freed_at_once(data: bytes) -> None:
    gc.disable()
    try:
        reader, _ = fed(data)
        reader.close()
        reference = weakref.ref(reader)
        del reader
        assert reference() is None
    finally:
        gc.enable()

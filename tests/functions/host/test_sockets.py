"""Bodies of any size are sent and received whole."""

import random
import socket
from threading import Thread

import pytest

from functions.host.sockets import JOINED_BYTES, BodyBuffer, MessageTooLarge, send_all


@pytest.mark.parametrize(
    "sizes",
    [[], [0], [5], [5, 0, 7], [JOINED_BYTES], [3, JOINED_BYTES, 0, 1], [100, 3_000_000, 1, 2_000_000]],
)
def test_all_parts_arrive_in_order(sizes: list[int]) -> None:
    generator = random.Random(0)
    parts = [memoryview(generator.randbytes(size)) for size in sizes]
    here, there = socket.socketpair()
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    received = bytearray()

    def receive() -> None:
        while chunk := there.recv(30_000):
            received.extend(chunk)

    with here, there:
        reader = Thread(target=receive)
        reader.start()
        here.settimeout(30)
        send_all(here, parts)
        here.shutdown(socket.SHUT_WR)
        reader.join()
    assert received == b"".join(parts)


def test_sending_to_a_stalled_receiver_times_out() -> None:
    here, there = socket.socketpair()
    with here, there:
        here.settimeout(0.05)
        with pytest.raises(TimeoutError):
            send_all(here, [bytes(1 << 20), bytes(50 << 20)])


def test_an_announced_body_is_received_in_its_place() -> None:
    body = BodyBuffer(max_nbytes=10, max_direct_nbytes=10)
    body.announce(6)
    body.append(b"ab")
    rest = body.rest()
    assert rest is not None
    assert len(rest) == 4
    rest[:3] = b"cde"
    assert not body.received(3)
    last = body.rest()
    assert last is not None
    last[:] = b"f"
    assert body.received(1)
    assert body.data == b"abcdef"


@pytest.mark.parametrize("announced", [0, 7])
def test_bodies_without_a_length_grow_as_bytes_arrive(announced: int) -> None:
    """A body of unknown length, and one whose memory must not be taken at once."""
    body = BodyBuffer(max_nbytes=10, max_direct_nbytes=6)
    body.announce(announced)
    assert body.rest() is None
    for piece in (b"abc", b"", b"defg"):
        body.append(piece)
    assert body.data == b"abcdefg"


def test_a_body_over_the_limit_is_refused() -> None:
    body = BodyBuffer(max_nbytes=10, max_direct_nbytes=6)
    with pytest.raises(MessageTooLarge):
        body.announce(11)
    body.append(b"x" * 10)
    with pytest.raises(MessageTooLarge):
        body.append(b"x")

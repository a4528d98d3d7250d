"""Bodies of any size are sent and received whole."""

import random
import socket
from threading import Thread

import pytest

from functions.host.sockets import FIRST_BODY_BYTES, JOINED_BYTES, BodyBuffer, MessageTooLarge, send_all


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


@pytest.mark.parametrize("nbytes", [1, 2, 5, 99, 100, 101, 12_345, FIRST_BODY_BYTES + 1, 1_000_003])
@pytest.mark.parametrize("first", [0, 1, 16_000])
def test_an_announced_body_is_received_in_its_place(nbytes: int, first: int) -> None:
    """It takes memory for little more than has arrived."""
    generator = random.Random(nbytes)
    sent = generator.randbytes(nbytes)
    body = BodyBuffer(max_nbytes=nbytes)
    body.announce(nbytes)
    filled = min(first, nbytes - 1)
    body.append(sent[:filled])
    complete = False
    while not complete:
        rest = body.rest()
        assert rest is not None
        assert len(rest) > 0
        assert len(body.data) <= max(2 * filled, FIRST_BODY_BYTES)
        received = min(len(rest), generator.randint(1, 50_000))
        rest[:received] = sent[filled : filled + received]
        filled += received
        complete = body.received(received)
    assert body.data == sent


def test_a_body_without_a_length_grows_as_bytes_arrive() -> None:
    body = BodyBuffer(max_nbytes=10)
    body.announce(0)
    assert body.rest() is None
    for piece in (b"abc", b"", b"defg"):
        body.append(piece)
    assert body.data == b"abcdefg"


def test_a_body_over_the_limit_is_refused() -> None:
    body = BodyBuffer(max_nbytes=10)
    with pytest.raises(MessageTooLarge):
        body.announce(11)
    body.append(b"x" * 10)
    with pytest.raises(MessageTooLarge):
        body.append(b"x")

"""What is in several buffers arrives as one, whatever the sizes, and however little a socket takes."""

import random
import socket
from threading import Thread

import pytest

from functions.host.sockets import JOINED_BYTES, send_all


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


def test_a_receiver_that_takes_nothing_is_not_waited_for_longer_than_the_timeout() -> None:
    here, there = socket.socketpair()
    with here, there:
        here.settimeout(0.05)
        with pytest.raises(TimeoutError):
            send_all(here, [bytes(1 << 20), bytes(50 << 20)])

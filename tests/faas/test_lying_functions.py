"""Functions that are faulty, or somebody else's: what the control plane reads, believes and calls."""

import time
import tracemalloc
from contextlib import ExitStack
from ipaddress import ip_network

import pytest

from control_plane.errors import GatewayError
from control_plane.faas.call import InvocationPolicy
from tests.support.functions.invoking import answers, invocation, invoker_of, never
from tests.support.functions.loopback_server import Call, Responder, loopback_server

pytestmark = pytest.mark.usefixtures("either_way")

BRIEF = InvocationPolicy(attempt_timeout=5, deadline=0.5, first_backoff=0.1)
LARGE = 1 << 30


def endless(head: bytes, piece: bytes, counts: list[int]) -> Responder:
    """Sends a beginning, then the same piece until the caller hangs up; appends how many bytes were taken."""

    def answer(call: Call) -> None:
        sent = 0
        try:
            call.wfile.write(head)
            while sent < LARGE:
                call.wfile.write(piece)
                sent += len(piece)
        except OSError:
            pass
        finally:
            counts.append(sent)

    return answer


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE, bytes(1 << 16)),
        (b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % LARGE, bytes(1 << 16)),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"10000\r\n" + bytes(1 << 16) + b"\r\n",
        ),
        (b"HTTP/1.1 200 OK\r\n", b"X-Header: " + b"y" * 60000 + b"\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    ],
    ids=["announced", "error", "chunks", "headers", "continue"],
)
def test_an_endless_answer_is_not_read(head: bytes, piece: bytes) -> None:
    counts: list[int] = []
    with ExitStack() as stack:
        server = stack.enter_context(loopback_server(endless(head, piece, counts)))
        invoker = stack.enter_context(invoker_of(server.address, BRIEF))
        tracemalloc.start()
        try:
            with pytest.raises(GatewayError) as raised:
                invoker.begin({"f": invocation()}).wait()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(str(raised.value)) < 500
    assert peak < 2 << 20
    # The operating system's buffers take some megabytes before anybody reads.
    assert counts
    assert all(count < 32 << 20 for count in counts)


def test_no_more_than_the_time_that_passed_is_booked() -> None:
    liar = answers(seconds=999_999.0, cold_experts=10**15)
    with loopback_server(liar) as server, invoker_of(server.address) as invoker:
        began = time.monotonic()
        invoker.begin({"f": invocation()}).wait()
        assert 0 < invoker.usage.seconds <= time.monotonic() - began
        assert invoker.usage.cold_experts == 2
        assert invoker.statistics["f"].seconds == invoker.usage.seconds


def test_rows_do_not_go_to_an_address_outside_the_networks() -> None:
    """This machine answers at each of these addresses. Behind a gateway elsewhere, none is called."""
    with ExitStack() as stack:
        victim = stack.enter_context(loopback_server(never))
        port = victim.address.port
        spellings = ("127.0.0.1", "127.1", "0.0.0.0", "0", "::ffff:127.0.0.1", "localhost", "2130706433")
        server = stack.enter_context(
            loopback_server(answers(), *(answers(f"{host}:{port}") for host in spellings))
        )
        # Linux connects to itself at this address, which does not count as loopback.
        elsewhere = server.address._replace(host="0.0.0.0")
        networks = [ip_network("0.0.0.0/0"), ip_network("::/0")]
        invoker = stack.enter_context(invoker_of(elsewhere, networks=networks))
        for _ in range(len(spellings) + 1):
            invoker.begin({"f": invocation()}).wait()
        assert victim.paths == []
        assert victim.connections == 0


def test_a_trickle_ends_with_its_attempt() -> None:
    def trickle(call: Call) -> None:
        call.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n")
        while not call.wait_for_hang_up(0.02):
            call.wfile.write(b".")

    policy = InvocationPolicy(attempt_timeout=0.5, deadline=20)
    with loopback_server(answers(), trickle) as server, invoker_of(server.address, policy) as invoker:
        began = time.monotonic()
        invoker.begin({"f": invocation()}).wait()
        assert 0.5 <= time.monotonic() - began < 3

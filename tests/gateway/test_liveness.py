"""A function that hangs is replaced; one that is busy or starved is not."""

import asyncio
import os
import signal
import socket
import time
from pathlib import Path
from threading import Event, Thread

import psutil
import pytest

from control_plane.gateway.provider.health_probe import HealthProbe
from control_plane.gateway.provider.liveness import Activity, Liveness, LivenessLimits
from tests.support.gateways.echo_client import EchoClient, deployment
from tests.support.gateways.echo_gateway import asynchronous, echo_gateway, wait_for_end

pytestmark = pytest.mark.slow

LIMITS = LivenessLimits(interval=1, deadline=0.5, failures=2, busy=30)
IDLE = Activity(seconds=1.0, working=False)


def test_a_process_hangs_after_two_unanswered_probes_in_which_it_did_nothing() -> None:
    liveness = Liveness(LIMITS, now=0)
    liveness.failed(IDLE)
    assert not liveness.hangs(0.5)
    liveness.answered(0.8)
    liveness.failed(IDLE)
    assert not liveness.hangs(1.5)
    liveness.failed(IDLE)
    assert liveness.hangs(2.0)


@pytest.mark.parametrize("working", [True, False])
def test_a_process_that_computes_has_longer(working: bool) -> None:
    liveness = Liveness(LIMITS, now=0)
    for second in range(1, 30):
        # Either a thread is seen to work, or the process has used time since the last look.
        liveness.failed(Activity(seconds=0.0 if working else second / 100, working=working))
        assert not liveness.hangs(second)
    assert liveness.hangs(30)


def test_the_activity_of_a_process_is_seen() -> None:
    before = Activity.read(os.getpid())
    while (now := Activity.read(os.getpid())).seconds == before.seconds:
        pass
    assert now.seconds > before.seconds > 0
    assert now.working
    assert Activity.read(2**22 + 1) == Activity(0.0, False)


@asynchronous
async def test_an_answer_counts_that_this_process_was_too_busy_to_read() -> None:
    """As when hundreds of probes are due at once."""
    busy, sent, seen, seconds = Event(), Event(), Event(), 0.3

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            busy.wait(5)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
            sent.set()
            seen.wait(5)

    def be_busy() -> None:
        busy.set()
        sent.wait(5)
        time.sleep(seconds)

    with socket.create_server(("127.0.0.1", 0)) as listener, HealthProbe(listener.getsockname()[1]) as probe:
        function = Thread(target=answer)
        function.start()
        # The answer comes before the time is up, and is seen after that.
        asyncio.get_running_loop().call_later(seconds / 3, be_busy)
        answered = await probe.ask(seconds)
        assert answered or probe.has_arrived()
        seen.set()
        function.join()


@asynchronous
async def test_a_process_that_does_not_answer_is_told_from_one_that_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, HealthProbe(listener.getsockname()[1]) as probe:
        assert not await probe.ask(0.05)
        assert not probe.has_arrived()
        listener.close()
        probe.hang_up()
        with pytest.raises(ConnectionRefusedError):
            await probe.ask(5)


@asynchronous
async def test_probes_share_one_connection(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        function = psutil.Process(await warm_pid(gateway))
        (listening,) = (each for each in function.net_connections() if each.status == "LISTEN")
        with HealthProbe(listening.laddr.port) as probe:
            assert await probe.ask(5)
            before = {each.raddr for each in function.net_connections()}
            for _ in range(5):
                assert await probe.ask(5)
            assert {each.raddr for each in function.net_connections()} <= before


async def warm_pid(gateway: EchoClient) -> int:
    await gateway.deploy(deployment())
    return int((await gateway.ask_process())["pid"])


@asynchronous
async def test_a_stopped_function_is_replaced_and_its_calls_fail_at_once(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        pid = await warm_pid(gateway)
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        async with gateway.http.post("/function/echo", data=b"hello") as answer:
            assert answer.status == 502
            message = (await answer.json())["error"]["message"]
        assert message.startswith("function echo broke off the call: it did not answer and was killed")
        assert await gateway.echo() == (200, b"hello")
        assert time.monotonic() - began < 3
        assert (await gateway.ask_process())["pid"] != pid
        assert not Path(f"/proc/{pid}").exists()


@asynchronous
async def test_a_stopped_function_without_calls_is_replaced_too(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        pid = await warm_pid(gateway)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.gather(wait_for_end(pid), gateway.wait_for_log_line("serving"))
        async with asyncio.timeout(10):
            while not (await gateway.describe())["availableReplicas"]:
                await asyncio.sleep(0.01)
        assert (await gateway.describe())["invocationCount"] == 1


@asynchronous
async def test_a_function_that_is_stopped_while_it_starts_is_started_again(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment(ECHO_READY_FILE=str(ready)))
        await gateway.wait_for_log_line("serving")
        async with gateway.http.get("/system/logs", params={"name": "echo"}) as answer:
            pid = int((await answer.text()).split("echo-")[1].split('"')[0])
        os.kill(pid, signal.SIGSTOP)
        ready.touch()
        assert await gateway.echo() == (200, b"hello")
        assert (await gateway.ask_process())["pid"] != pid


@asynchronous
async def test_a_stopped_function_that_is_being_released_is_killed(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        pid = await warm_pid(gateway)
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(5):
            assert await gateway.scale(0) == 202
        assert not Path(f"/proc/{pid}").exists()
        assert (await gateway.describe())["replicas"] == 0


@asynchronous
async def test_a_function_that_computes_and_answers_no_probe_is_left_alone(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        pid = await warm_pid(gateway)
        async with gateway.http.get("/function/echo/busy", params={"seconds": "4"}) as answer:
            assert (answer.status, await answer.text()) == (200, str(pid))
        assert (await gateway.ask_process())["pid"] == pid

"""The control plane and a function prove to each other that they have the same secret."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from yarl import URL

from control_plane.deployment.deploy import deploy_all
from control_plane.errors import ConfigError, GatewayError, ProtocolError
from control_plane.faas.client import Gateway
from control_plane.faas.connection import Address
from control_plane.faas.gateway_access import (
    known_function_secret,
    make_function_secret,
    random_function_secret,
    read_function_secret,
)
from control_plane.faas.invoking.invoker import Invoker
from control_plane.gateway import embedded_gateway
from control_plane.partition.granularity import Granularity
from functions.contract.secret import FunctionSecret
from tests.support.api.api_server import in_thread
from tests.support.functions.invoking import answers, invocation, invoker_of
from tests.support.functions.loopback_server import loopback_server
from tests.support.models.tiny_partition import TinyPartition

pytestmark = pytest.mark.usefixtures("either_way")

SECRET = FunctionSecret("a secret of some length")
OTHER = FunctionSecret("another secret, as long")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyPartition:
    return TinyPartition.make(tmp_path_factory.mktemp("tiny"), "f32", Granularity(3, 3))


@contextmanager
def deployed(tiny: TinyPartition, secret: FunctionSecret | None) -> Iterator[URL]:
    """A gateway with the partition's functions; yields its address."""
    with in_thread(embedded_gateway(tiny.folder, "127.0.0.1", 0, None, idle_after=900.0)) as url:

        async def deploy() -> None:
            async with Gateway.connect(url, None) as gateway:
                async for _ in deploy_all(tiny.manifest, [gateway], secret=secret):
                    pass

        asyncio.run(deploy())
        yield url


def invoke(tiny: TinyPartition, invoker: Invoker) -> None:
    """Call each function twice, the second time at its own address."""
    for _ in range(2):
        for name in tiny.functions:
            sent = tiny.invocation(name)
            tiny.check(sent, invoker.begin({name: sent}).wait()[name].output)


def address(url: URL) -> Address:
    return Address(url.host or "", url.port or 0)


def test_both_sides_have_the_secret(tiny: TinyPartition) -> None:
    with deployed(tiny, SECRET) as url, invoker_of(address(url), secret=SECRET) as invoker:
        invoke(tiny, invoker)
        assert all(invoker.address_of(name) for name in tiny.functions)


@pytest.mark.parametrize("secret", [OTHER, None])
def test_a_caller_without_the_secret_is_refused(tiny: TinyPartition, secret: FunctionSecret | None) -> None:
    with deployed(tiny, SECRET) as url, invoker_of(address(url), secret=secret) as invoker:
        with pytest.raises(ProtocolError, match="has another secret than the control plane"):
            invoke(tiny, invoker)

        async def drop_weights() -> None:
            async with Gateway.connect(url, None, secret) as gateway:
                await gateway.release_residency(tiny.functions[0])

        with pytest.raises(GatewayError, match="refuses"):
            asyncio.run(drop_weights())


def test_a_function_without_the_secret_is_not_believed(tiny: TinyPartition) -> None:
    with (
        deployed(tiny, None) as url,
        invoker_of(address(url), secret=SECRET) as invoker,
        pytest.raises(ProtocolError, match="does not prove") as raised,
    ):
        invoke(tiny, invoker)
    assert raised.value.functions == {tiny.functions[0]}


def test_whoever_takes_over_an_address_is_not_believed() -> None:
    """An invoker that has no secret takes any answer."""
    with ExitStack() as stack:
        stranger = stack.enter_context(loopback_server(answers()))
        trusting = stack.enter_context(invoker_of(stranger.address))
        assert trusting.begin({"f": invocation()}).wait()
        careful = stack.enter_context(invoker_of(stranger.address, secret=SECRET))
        with pytest.raises(ProtocolError, match="does not prove"):
            careful.begin({"f": invocation()}).wait()


def test_residency_needs_the_secret(tiny: TinyPartition) -> None:
    async def scenario(url: URL) -> None:
        async with Gateway.connect(url, None, SECRET) as gateway:
            assert (await gateway.limit_residency(tiny.functions[0], 1 << 30)).limit_bytes == 1 << 30

    with deployed(tiny, SECRET) as url, invoker_of(address(url), secret=SECRET) as invoker:
        invoke(tiny, invoker)
        asyncio.run(scenario(url))


def test_a_secret_is_made_once(tmp_path: Path) -> None:
    file = tmp_path / "state" / "function-secret"
    made = make_function_secret(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert make_function_secret(file) == read_function_secret(file) == known_function_secret(file) == made
    assert random_function_secret() != made
    assert made.value not in repr(made)


def test_a_secret_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "function-secret"
    with pytest.raises(ConfigError, match="No such file"):
        known_function_secret(file)
    file.write_text("short")
    with pytest.raises(ConfigError, match="16 to 4096 characters"):
        make_function_secret(file)

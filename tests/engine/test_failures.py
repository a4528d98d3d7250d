"""Functions and gateways that fail, hang and return: streams raise the error, and no sequence remains."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import numpy as np
import pytest
from numpy.typing import NDArray
from yarl import URL

from control_plane.deployment.deploy import deploy_all
from control_plane.engine.engine import Engine
from control_plane.engine.experts.dispatcher import PendingExperts
from control_plane.engine.model.ragged_batch import token_ids
from control_plane.engine.model.runner import ModelRunner
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.state.sequence import SamplingParams, Sequence
from control_plane.engine.state.sequence_memory import SequenceMemory
from control_plane.engine.stream import TokenStream
from control_plane.errors import (
    EngineError,
    FunctionNotFound,
    FunctionUnavailable,
    InvocationTimeout,
    ShuttingDown,
)
from control_plane.faas.client import Gateway
from control_plane.gateway import embedded_gateway
from tests.support.models.tiny_engine import (
    LONG,
    MAX_SEQUENCES,
    Reference,
    all_tokens_of,
    embedded_as,
    engine_behind,
    idle,
    make_sequence,
    random_prompt,
    token_apart_from,
    tokens_of,
    until,
)
from tests.support.running import Served

pytestmark = pytest.mark.slow


def address(port: int) -> URL:
    return URL(f"http://127.0.0.1:{port}")


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port that refuses connections until the test starts a server on it."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@contextmanager
def silent_gateway() -> Iterator[URL]:
    """A gateway that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield address(server.getsockname()[1])


async def deploy(reference: Reference, gateway: Gateway) -> None:
    """Deploy missing functions, and wait until all are awake."""
    assert [change async for change in deploy_all(reference.manifest, [gateway])]
    async with asyncio.timeout(30):
        while not all(function.available_replicas for function in await gateway.functions()):
            await asyncio.sleep(0.02)


async def assert_serves(engine: Engine, reference: Reference) -> None:
    """Fail unless the engine is idle and computes the right tokens for new sequences."""
    assert idle(engine)
    streams = [engine.submit([make_sequence(length, 5)]) for length in (4, 20)]
    answers = [reference.answer(random_prompt(length), 5) for length in (4, 20)]
    assert [await tokens_of(stream) for stream in streams] == answers
    assert idle(engine)


def test_functions_that_sleep_are_woken(serving: Served, reference: Reference) -> None:
    sequence = make_sequence(20, 6)

    async def scenario() -> list[int]:
        async with Gateway.connect(serving.gateway_url, None) as gateway:
            for block in reference.manifest.blocks:
                await gateway.scale(block.function, 0)
        return await tokens_of(serving.engine.submit([sequence]))

    assert asyncio.run(scenario()) == reference.answer(random_prompt(20), 6)
    assert sequence.usage.cold_starts == len(reference.manifest.blocks)


def test_a_function_that_is_removed_and_deployed_again(serving: Served, reference: Reference) -> None:
    removed = {"functionName": reference.manifest.blocks[0].function}

    async def scenario() -> None:
        stream = serving.engine.submit([make_sequence(20, LONG)])
        await anext(aiter(stream))
        async with aiohttp.ClientSession(serving.gateway_url) as http:
            assert (await http.delete("/system/functions", json=removed)).status == 200
        with pytest.raises(FunctionNotFound, match="deploy it first"):
            await tokens_of(stream)
        assert idle(serving.engine)

        async with Gateway.connect(serving.gateway_url, None) as gateway:
            await deploy(reference, gateway)
        await assert_serves(serving.engine, reference)

    asyncio.run(scenario())


def test_a_missing_function_ends_only_the_sequences_that_need_it(
    serving: Served, reference: Reference
) -> None:
    """All rows go to the first function, but those of one token, which go to the second."""
    engine = serving.engine
    first, second = (block.function for block in reference.manifest.blocks)

    async def scenario(poison: int) -> tuple[list[int], list[int]]:
        alone = await tokens_of(engine.submit([make_sequence(3, 30)]))
        async with Gateway.connect(serving.gateway_url, None) as gateway:
            await gateway.remove(second)
            calm = engine.submit([make_sequence(3, 30)])
            needy = engine.submit([Sequence("test", "other", [poison], SamplingParams(max_tokens=30))])
            with pytest.raises(FunctionNotFound, match=second) as raised:
                await tokens_of(needy)
            beside = await tokens_of(calm)
            await deploy(reference, gateway)
        assert raised.value.functions == {second}
        return alone, beside

    poison = token_apart_from(*random_prompt(3))
    with routed_apart(serving.runner, poison):
        alone, beside = asyncio.run(scenario(poison))
    assert first != second
    assert len(alone) == 30
    assert alone == beside
    asyncio.run(assert_serves(engine, reference))


@contextmanager
def routed_apart(runner: ModelRunner, token: int) -> Iterator[None]:
    """Until the context ends, rows of the token go to the experts 3 and 4, all others to 0 and 1."""
    run, begin = runner.model.hidden_states, runner.dispatcher.begin
    tokens: list[int] = []

    def remember(batch: list[Chunk], memory: SequenceMemory) -> NDArray[Any]:
        tokens[:] = token_ids(batch)
        return run(batch, memory)

    def route(layer: int, rows: NDArray[Any], index: NDArray[Any], weights: NDArray[Any]) -> PendingExperts:
        apart = np.array(tokens)[:, None] == token
        return begin(layer, rows, np.where(apart, [3, 4], [0, 1]), weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.model, "hidden_states", remember)
        patch.setattr(runner.dispatcher, "begin", route)
        yield


def test_a_gateway_that_starts_late(reference: Reference) -> None:
    async def scenario(port: int) -> None:
        async with engine_behind(address(port), reference, deadline=2.0) as engine:
            streams = [engine.submit([make_sequence(length, 5)]) for length in (3, 20)]
            for stream in streams:
                with pytest.raises(FunctionUnavailable, match="cannot be reached"):
                    await tokens_of(stream)
            assert idle(engine)

            async with embedded_gateway(reference.folder, "127.0.0.1", port, None, idle_after=900.0) as url:
                async with Gateway.connect(url, None) as gateway:
                    await deploy(reference, gateway)
                await assert_serves(engine, reference)

    with reserved_port() as port:
        asyncio.run(scenario(port))


def test_a_gateway_that_does_not_answer(reference: Reference) -> None:
    async def scenario(gateway: URL) -> None:
        async with engine_behind(gateway, reference, deadline=0.3) as engine:
            with pytest.raises(InvocationTimeout, match="did not answer in time"):
                await tokens_of(engine.submit([make_sequence(3, 5)]))
            assert idle(engine)

    with silent_gateway() as gateway:
        asyncio.run(scenario(gateway))


async def assert_stops(engine: Engine, *streams: TokenStream) -> None:
    async with asyncio.timeout(10):
        await engine.stop()
    for stream in streams:
        with pytest.raises(EngineError, match="the server is shutting down"):
            await tokens_of(stream)
    assert idle(engine)
    with pytest.raises(EngineError, match="the server is shutting down"):
        engine.submit([make_sequence(3, 5)])


def test_stop_while_functions_hang(reference: Reference) -> None:
    async def scenario(gateway: URL) -> None:
        async with engine_behind(gateway, reference) as engine:
            running = engine.submit([make_sequence(3, 5)])
            await until(lambda: engine.status().running == 1)
            # The engine's thread waits for an answer, so it has not queued this request yet.
            await assert_stops(engine, running, engine.submit([make_sequence(3, 5)]))

    with silent_gateway() as gateway:
        asyncio.run(scenario(gateway))


def test_stop_in_the_middle_of_answers(serving: Served, reference: Reference) -> None:
    async def scenario() -> None:
        async with engine_behind(serving.gateway_url, reference) as engine:
            streams = [engine.submit([make_sequence(3, 1000)]) for _ in range(2)]
            await anext(aiter(streams[0]))
            await assert_stops(engine, *streams)

    asyncio.run(scenario())


def test_a_request_that_arrives_while_the_engine_fails(serving: Served, reference: Reference) -> None:
    """The thread ends after the request was checked, and before it is queued."""
    engine = serving.engine

    class FailsTheEngine(Sequence):
        @property
        def max_length(self) -> int:
            engine.cancel(None)  # type: ignore[arg-type]  # a bug that no step catches
            while engine.alive:
                time.sleep(0.001)
            return super().max_length

    async def scenario() -> None:
        nonlocal engine
        async with engine_behind(serving.gateway_url, reference) as engine:
            sequence = FailsTheEngine("test", "tenant", [1], SamplingParams(max_tokens=5))
            with pytest.raises(ShuttingDown):
                engine.submit([sequence])

    asyncio.run(scenario())


def test_a_bug_ends_its_own_batch_only(
    serving: Served, reference: Reference, caplog: pytest.LogCaptureFixture
) -> None:
    """Any exception counts, not only our own errors."""
    poison = token_apart_from(*random_prompt(3), *reference.answer(random_prompt(3), 8))
    sequence = Sequence("test", "tenant", [poison], SamplingParams(max_tokens=5))

    async def scenario() -> None:
        with pytest.raises(EngineError, match="internal error"):
            await tokens_of(serving.engine.submit([sequence]))
        await assert_serves(serving.engine, reference)

    with embedded_as(serving.runner.model, poison, a_bug):
        asyncio.run(scenario())
    assert "IndexError" in caplog.text


def test_an_error_ends_the_whole_request(serving: Served, reference: Reference) -> None:
    """This includes sequences outside the failed batch: their stream has ended."""
    bad = Sequence("test", "tenant", [10**6], SamplingParams(max_tokens=5))  # there is no such token
    others = [make_sequence(3, LONG) for _ in range(MAX_SEQUENCES)]

    async def scenario() -> None:
        with pytest.raises(EngineError, match="vocabulary"):
            await all_tokens_of(serving.engine.submit([bad, *others]))
        try:
            async with asyncio.timeout(3):
                await until(lambda: idle(serving.engine))
        finally:
            serving.engine.cancel(others)
            await until(lambda: idle(serving.engine))
        await assert_serves(serving.engine, reference)

    asyncio.run(scenario())


def test_output_that_is_not_a_number_ends_its_own_sequence_only(
    serving: Served, reference: Reference
) -> None:
    """Other rows of the same batch are not affected."""
    answer = reference.answer(random_prompt(3), 8)
    poison = token_apart_from(*random_prompt(3), *answer)
    bad = Sequence("test", "other", [4, poison], SamplingParams(max_tokens=5))

    async def scenario() -> list[int]:
        streams = [serving.engine.submit([sequence]) for sequence in (make_sequence(3, 8), bad)]
        with pytest.raises(EngineError, match="the model's output is not a number"):
            await tokens_of(streams[1])
        return await tokens_of(streams[0])

    with embedded_as(serving.runner.model, poison, not_a_number):
        assert asyncio.run(scenario()) == answer
    assert idle(serving.engine)


def not_a_number(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.full_like(rows, np.nan)


def a_bug(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    raise IndexError(f"rows of {rows.shape}")

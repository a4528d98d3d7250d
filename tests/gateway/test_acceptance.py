"""Acceptance tests of a gateway: all that FaaSMoE needs, from a deploy to the answer to a prompt.

They run against the embedded gateway, with its own and with faasd's behaviour, and against any other one:

    faasmoe partition models/demo partitions/acceptance --dtype f32
    pytest tests/gateway/test_acceptance.py --gateway=URL \\
        --gateway-password-file=FILE --image-prefix=REGISTRY/ --function-secret-file=FILE

The gateway must find that partition's image there (docs/deploy-faasd.md). The tests replace and remove the
functions of that partition and no others; the gateway must have room for them. They store the secret of the
file there; without a file, they deploy functions that answer everybody.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from yarl import URL

from control_plane.app import control_plane
from control_plane.config import ServeConfig
from control_plane.deployment.deploy import Change, deploy_all
from control_plane.errors import FunctionNotFound, FunctionUnavailable, GatewayError
from control_plane.faas.call import InvocationPolicy
from control_plane.faas.client import Gateway
from control_plane.faas.connection import Address
from control_plane.faas.gateway_access import Credentials, GatewayAccess, read_credentials
from control_plane.faas.invoking.invoker import Invoker
from control_plane.gateway import embedded_gateway
from control_plane.gateway.provider.emulation import FAASD, OWN
from control_plane.partition.partitioner import partition
from functions.contract.messages import Invocation
from functions.contract.secret import FunctionSecret
from tests.support.api.api_server import ApiClient, in_thread
from tests.support.models.tiny_partition import TinyPartition
from tests.support.paths import DEMO_MODEL

pytestmark = [pytest.mark.gateway, pytest.mark.slow, pytest.mark.timeout(600)]

POLICY = InvocationPolicy(attempt_timeout=30, deadline=60)
PROMPT = "And it came to pass"
ANSWER_TOKENS = 16
CALLERS = 5


@dataclass(frozen=True)
class Target:
    """The gateway under test, and the partition that is deployed there."""

    access: GatewayAccess
    image_prefix: str
    demo: TinyPartition
    secret: FunctionSecret | None
    """The functions' secret; without one, they answer everybody, also at a container's address."""
    kill: Callable[[str], None] | None
    """Kills a function's process; None if the processes are not on this machine."""

    def deploy(self, **options: Any) -> list[Change]:
        options |= {"secret": self.secret, "open_to_all": self.secret is None}

        async def run() -> list[Change]:
            async with Gateway.connect(*self.access) as gateway:
                manifest, prefix = self.demo.manifest, self.image_prefix
                return [change async for change in deploy_all(manifest, [gateway], prefix, **options)]

        return asyncio.run(run())

    def remove_all(self) -> None:
        async def run() -> None:
            async with Gateway.connect(*self.access) as gateway:
                for name in self.demo.functions:
                    await gateway.remove(name)

        asyncio.run(run())

    @contextmanager
    def invoker(self, policy: InvocationPolicy = POLICY) -> Iterator[Invoker]:
        async def address() -> Address:
            async with Gateway.connect(*self.access) as gateway:
                return gateway.address

        found = asyncio.run(address())
        invoker = Invoker(lambda _: found, lambda _: False, policy, secret=self.secret)
        try:
            yield invoker
        finally:
            invoker.close()

    def invocation(self, name: str, seed: int = 0) -> Invocation:
        (layer, *_) = self.demo.manifest.block(name).experts
        return self.demo.invocation(name, layer, seed=seed)

    def assert_answers(self, invoker: Invoker, name: str, seed: int = 0) -> None:
        """Fail unless a function answers an invocation as the model's weights do."""
        invocation = self.invocation(name, seed)
        self.demo.check(invocation, invoker.begin({name: invocation}).wait()[name].output)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Select the gateways under test."""
    if "target" in metafunc.fixturenames:
        given = metafunc.config.getoption("--gateway")
        metafunc.parametrize(
            "target", ["given"] if given else ["embedded", "faasd"], indirect=True, scope="module"
        )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> TinyPartition:
    """The demo model in float32, so that rounding does not change the answers."""
    folder = tmp_path_factory.mktemp("acceptance") / "partition"
    manifest = partition(DEMO_MODEL, folder, dtype="f32")
    model: Any = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    return TinyPartition(folder, manifest, model.eval())


@pytest.fixture(scope="module")
def target(request: pytest.FixtureRequest, demo: TinyPartition) -> Iterator[Target]:
    """A gateway with all functions deployed; they are removed at the end."""
    if request.param == "given":
        option = request.config.getoption
        credentials = read_credentials(option("--gateway-user"), option("--gateway-password-file"))
        access = GatewayAccess(URL(option("--gateway")), credentials)
        file = option("--function-secret-file")
        secret = FunctionSecret.read(file) if file else None
        given = Target(access, option("--image-prefix"), demo, secret, None)
        given.deploy(prune=True)
        yield given
        given.remove_all()
        return
    # The suite often removes functions that have just been deployed.
    faasd = replace(FAASD, ignored_sigterm_seconds=1.0)
    behaviour = {"embedded": OWN, "faasd": faasd}[request.param]
    credentials = Credentials("admin", "secret")
    gateway = embedded_gateway(demo.folder, "127.0.0.1", 0, credentials, 900.0, behaviour)
    with in_thread(gateway) as url:
        secret = FunctionSecret("the secret of the suite")
        embedded = Target(GatewayAccess(url, credentials), "", demo, secret, kill)
        embedded.deploy()
        yield embedded


def kill(function: str) -> None:
    """Kill a function of the embedded gateway: its process is a descendant of the test's."""
    for child in psutil.Process().children(recursive=True):
        if child.environ().get("FAASMOE_FUNCTION") == function:
            child.kill()
            child.wait(10)


def test_a_second_deploy_changes_nothing(target: Target) -> None:
    target.remove_all()
    assert [(change.function, change.done) for change in target.deploy()] == [
        (name, "created") for name in target.demo.functions
    ]
    assert {change.done for change in target.deploy()} == {"unchanged"}


def test_cold_calls_are_answered(target: Target) -> None:
    target.remove_all()
    target.deploy()
    with target.invoker() as invoker:
        for seed, name in enumerate(target.demo.functions):
            target.assert_answers(invoker, name, seed)


def test_warm_calls_need_no_second_attempt(target: Target) -> None:
    name = target.demo.functions[0]
    with target.invoker() as invoker:
        target.assert_answers(invoker, name)
        retries = invoker.statistics[name].retries
        for seed in range(30):
            target.assert_answers(invoker, name, seed)
        assert invoker.statistics[name].retries == retries
        assert invoker.statistics[name].cold_starts == 1


def test_concurrent_calls_of_a_cold_function_are_all_answered(target: Target) -> None:
    name = target.demo.functions[-1]

    def call(seed: int) -> None:
        with target.invoker() as invoker:
            target.assert_answers(invoker, name, seed)

    target.remove_all()
    target.deploy()
    with ThreadPoolExecutor(CALLERS) as threads:
        list(threads.map(call, range(CALLERS)))


def test_a_killed_function_is_started_again(target: Target) -> None:
    if target.kill is None:
        pytest.skip("only the embedded gateway's processes are ours to kill")
    name = target.demo.functions[0]
    with target.invoker() as invoker:
        target.assert_answers(invoker, name)
        target.kill(name)
        target.assert_answers(invoker, name, seed=1)
        assert invoker.statistics[name].cold_starts == 2


def test_calls_are_answered_during_a_redeploy(target: Target) -> None:
    name = target.demo.functions[0]

    async def redeploy() -> None:
        async with Gateway.connect(*target.access) as gateway:
            (status,) = [each for each in await gateway.functions() if each.name == name]
            changed = {**status.deployment.annotations, "faasmoe.acceptance": "again"}
            deployment = status.deployment.from_json(
                {**status.deployment.to_json(), "annotations": changed, "image": status.deployment.image}
            )
            await gateway.deploy(deployment)

    with target.invoker() as invoker, ThreadPoolExecutor(1) as thread:
        target.assert_answers(invoker, name)
        redeployed = thread.submit(lambda: asyncio.run(redeploy()))
        seed = 0
        while not redeployed.done() or seed < 5:
            target.assert_answers(invoker, name, seed)
            seed += 1
        redeployed.result()
        target.assert_answers(invoker, name)
    assert {change.done for change in target.deploy()} <= {"updated", "unchanged"}


def test_a_deleted_function_is_gone(target: Target) -> None:
    name = target.demo.functions[0]

    async def remove() -> list[str]:
        async with Gateway.connect(*target.access) as gateway:
            await gateway.remove(name)
            return [status.name for status in await gateway.functions()]

    assert name not in asyncio.run(remove())
    brief = InvocationPolicy(attempt_timeout=2, deadline=2)
    with target.invoker(brief) as invoker, pytest.raises((FunctionNotFound, FunctionUnavailable)):
        target.assert_answers(invoker, name)
    changes = {change.function: change.done for change in target.deploy()}
    assert changes.pop(name) == "created"
    assert set(changes.values()) == {"unchanged"}


def test_a_wrong_password_is_an_error(target: Target) -> None:
    if target.access.credentials is None:
        pytest.skip("this gateway asks for no password")

    async def look() -> None:
        async with Gateway.connect(target.access.url, Credentials("admin", "wrong")) as gateway:
            await gateway.functions()

    with pytest.raises(GatewayError, match="refuses the user or password"):
        asyncio.run(look())


def test_a_prompt_gives_the_tokens_of_the_reference(target: Target, tmp_path: Path) -> None:
    target.deploy()
    config = ServeConfig(port=0, kv_cache_mb=32, open=True, database=str(tmp_path / "db"), threads=1)
    with in_thread(serving(target, config)) as url:
        body = {"prompt": PROMPT, "max_tokens": ANSWER_TOKENS, "temperature": 0}
        body |= {"ignore_eos": True, "return_token_ids": True}
        api = ApiClient(url)
        answer = api.answer("POST", "/v1/completions", body)
        assert answer.status == 200
        tokens = answer.json["choices"][0]["token_ids"]
        functions = api.status()["functions"]
        assert all(function["replicas"] == 1 and function["memory_bytes"] > 1e6 for function in functions)
    assert tokens == reference(target.demo)


@asynccontextmanager
async def serving(target: Target, config: ServeConfig) -> AsyncIterator[URL]:
    async with control_plane(target.demo.folder, config, [target.access], target.secret) as url:
        yield url


def reference(demo: TinyPartition) -> list[int]:
    """The greedy continuation by the transformers model, which is not partitioned."""
    prompt = AutoTokenizer.from_pretrained(DEMO_MODEL)(PROMPT, return_tensors="pt").input_ids
    model: Any = demo.model
    with torch.inference_mode():
        whole = model.generate(
            prompt, max_new_tokens=ANSWER_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    return [int(token) for token in whole[0, prompt.shape[1] :]]

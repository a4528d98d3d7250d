"""The embedded gateway answers faas-cli's requests."""

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from control_plane.faas.gateway_access import Credentials
from tests.support.gateways.echo_client import EchoClient, deployment
from tests.support.gateways.echo_gateway import asynchronous, echo_gateway


@asynchronous
async def test_a_deployed_function_can_be_listed_described_called_and_removed(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        before = datetime.now(UTC)
        assert await gateway.deploy(deployment(labels={"layer": "0"})) == 202
        assert await gateway.echo() == (200, b"hello")

        status = await gateway.describe()
        assert status["name"] == "echo"
        assert status["namespace"] == "openfaas-fn"
        assert status["image"] == "faasmoe/expert:test"
        assert status["envVars"] == {"FAASMOE_FUNCTION": "block-0"}
        assert status["labels"] == {"layer": "0"}
        assert status["annotations"] == {"topic": "echoes"}
        assert (status["replicas"], status["availableReplicas"], status["invocationCount"]) == (1, 1, 1)
        assert before <= datetime.fromisoformat(status["createdAt"]) <= datetime.now(UTC)
        assert status["usage"]["totalMemoryBytes"] > 1e6

        async with gateway.http.get("/system/functions") as answer:
            assert [function["name"] for function in await answer.json()] == ["echo"]
        assert await gateway.remove() == 200
        async with gateway.http.get("/system/functions") as answer:
            assert await answer.json() == []


@asynchronous
async def test_unknown_functions_give_404_on_all_routes(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        scaling = {"serviceName": "echo", "replicas": 1}
        for method, path, body in [
            ("PUT", "/system/functions", deployment()),
            ("DELETE", "/system/functions", {"functionName": "echo"}),
            ("GET", "/system/function/echo", None),
            ("POST", "/system/scale-function/echo", scaling),
            ("GET", "/system/logs?name=echo", None),
            ("POST", "/function/echo", {}),
            ("GET", "/function/echo/_/health", None),
        ]:
            async with gateway.http.request(method, path, json=body) as answer:
                assert (method, path, answer.status) == (method, path, 404)
                assert "function echo not found" in await answer.text()


@asynchronous
async def test_an_invalid_deployment_gives_400_and_one_clear_line(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"image": "other:latest"}, "no image 'other:latest' here, only 'faasmoe/expert:test'"),
        ({"service": "No_Name"}, "not a function's name: 'No_Name'"),
        ({"service": "x" * 64}, "not a function's name"),
        ({"namespace": "elsewhere"}, "no namespace 'elsewhere' here"),
        ({"secrets": ["missing"]}, "unable to find secret: missing"),
        ({"envVars": {}}, "FAASMOE_FUNCTION: this partition has no function ''"),
        ({"envVars": {"FAASMOE_FUNCTION": "block-9"}}, "this partition has no function 'block-9'"),
        ({"envVars": {"FAASMOE_FUNCTION": "damaged"}}, "blocks/damaged.safetensors: wrong checksum"),
        ({"envVars": {"FAASMOE_FUNCTION": "block-0", "a=b": "c"}}, "not a setting of this image"),
        ({"envVars": {"FAASMOE_FUNCTION": "block-0", "LD_PRELOAD": "x"}}, "not a setting of this image"),
        ({"envVars": {"FAASMOE_FUNCTION": 1}}, "envVars[...]: must be a string"),
        (
            {"labels": {"com.openfaas.scale.min": "2"}},
            "this gateway runs 0 or 1 replicas of a function, not 2",
        ),
        ({"labels": {"com.openfaas.scale.zero-duration": "soon"}}, "expected a duration such as 90s or 15m"),
    ]
    async with echo_gateway(tmp_path) as gateway:
        for change, message in cases:
            async with gateway.http.post("/system/functions", json=deployment() | change) as answer:
                text = await answer.text()
                assert (answer.status, text.count("\n")) == (400, 1), text
                assert message in text
        async with gateway.http.get("/system/functions") as answer:
            assert await answer.json() == []


@asynchronous
async def test_concurrent_creations_of_one_name_succeed_once(tmp_path: Path) -> None:
    async def create(gateway: EchoClient) -> int:
        async with gateway.http.post("/system/functions", json=deployment()) as answer:
            return answer.status

    async with echo_gateway(tmp_path) as gateway:
        assert sorted(await asyncio.gather(create(gateway), create(gateway))) == [202, 400]


@asynchronous
async def test_an_update_without_changes_keeps_the_process(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        before = await gateway.ask_process()
        assert await gateway.deploy(deployment()) == 200
        assert (await gateway.ask_process())["pid"] == before["pid"]


@asynchronous
async def test_secrets_reach_functions_and_are_never_returned(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        path, secret = "/system/secrets", {"name": "key", "value": "42"}
        for method, body, status in [
            ("PUT", secret, 404),
            ("POST", secret, 201),
            ("POST", secret, 409),
            ("PUT", {"name": "key", "rawValue": "NDM="}, 200),
            ("POST", {"name": "../key", "value": "42"}, 400),
            ("POST", {"name": "key", "rawValue": "?"}, 400),
        ]:
            async with gateway.http.request(method, path, json=body) as answer:
                assert (method, body, answer.status) == (method, body, status)
        async with gateway.http.get(path) as answer:
            assert await answer.json() == [{"name": "key", "namespace": "openfaas-fn"}]

        assert await gateway.deploy(deployment(secrets=["key"])) == 202
        folder = Path((await gateway.ask_process())["environment"]["FAASMOE_SECRETS"])
        assert (folder / "key").read_text() == "43"
        assert (folder / "key").stat().st_mode & 0o077 == 0

        async with gateway.http.delete(path, json={"name": "key"}) as answer:
            assert answer.status == 200
        async with gateway.http.get(path) as answer:
            assert await answer.json() == []


@asynchronous
async def test_a_function_gets_its_own_environment_and_little_of_the_gateways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_PASSWORD", "secret")
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment(COLOUR="red", FAASMOE_PARTITION="/container/path"))
        environment = (await gateway.ask_process())["environment"]
        assert environment["COLOUR"] == "red"
        assert environment["PATH"] == os.environ["PATH"]
        assert environment["FAASMOE_PARTITION"] == "the provider's"
        assert "GATEWAY_PASSWORD" not in environment


@asynchronous
async def test_system_routes_require_the_password_and_functions_do_not(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path, Credentials("admin", "pass:word")) as gateway:
        wrong = [None, "Basic", "Basic ???", "Bearer pass:word", aiohttp.encode_basic_auth("admin", "pass")]
        for authorization in wrong:
            headers = {"Authorization": authorization} if authorization else {}
            for path in ("/system/functions", "/%73ystem/functions", "/system/logs?name=echo"):
                async with gateway.http.get(URL(path, encoded=True), headers=headers) as answer:
                    assert (authorization, answer.status) == (authorization, 401)
                    assert answer.headers["WWW-Authenticate"].startswith("Basic")
        right = aiohttp.encode_basic_auth("admin", "pass:word")
        async with gateway.http.post(
            "/system/functions", json=deployment(), headers={"Authorization": right}
        ) as answer:
            assert answer.status == 202
        assert await gateway.echo() == (200, b"hello")
        async with gateway.http.get("/healthz") as answer:
            assert (answer.status, await answer.text()) == (200, "OK")


@asynchronous
async def test_metrics_have_the_names_of_openfaas(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        await gateway.deploy(deployment())
        await gateway.echo()
        await gateway.echo()
        await gateway.http.post("/function/echo/crash")
        await gateway.http.get("/function/made-up")
        async with gateway.http.get("/metrics") as answer:
            assert answer.content_type == "text/plain"
            lines = (await answer.text()).splitlines()
        name = 'function_name="echo.openfaas-fn"'
        assert f'gateway_function_invocation_total{{{name},code="200"}} 2' in lines
        assert f'gateway_function_invocation_total{{{name},code="502"}} 1' in lines
        assert f"gateway_function_invocation_started{{{name}}} 3" in lines
        assert f'gateway_functions_seconds_bucket{{{name},code="200",le="+Inf"}} 2' in lines
        assert f'gateway_functions_seconds_count{{{name},code="200"}} 2' in lines
        assert f"gateway_service_count{{{name}}} 1" in lines
        assert not any("made-up" in line for line in lines)


@asynchronous
async def test_info_and_namespaces_have_the_fields_that_faas_cli_reads(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path) as gateway:
        async with gateway.http.get("/system/info") as answer:
            info = await answer.json()
        assert info["provider"]["provider"] == "faasmoe"
        assert info["provider"]["version"]["release"] == info["version"]["release"] != ""
        async with gateway.http.get("/system/namespaces") as answer:
            assert await answer.json() == ["openfaas-fn"]

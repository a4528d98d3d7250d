"""The embedded gateway emulates faasd."""

from pathlib import Path

from control_plane.gateway.provider.emulation import FAASD
from tests.support.echo_client import deployment
from tests.support.echo_gateway import asynchronous, echo_gateway


@asynchronous
async def test_the_info_names_the_community_edition(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path, behaviour=FAASD) as gateway, gateway.http.get("/system/info") as answer:
        provider = (await answer.json())["provider"]
        assert (provider["provider"], provider["orchestration"]) == ("faasd-ce", "containerd")


@asynchronous
async def test_functions_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path, behaviour=FAASD) as gateway:
        # Functions that crash at once take less time than functions that run.
        for number in range(15):
            assert await gateway.deploy(deployment(f"f{number}", ECHO_CRASH="1")) == 202
        assert await gateway.deploy(deployment()) == 400
        assert await gateway.deploy(deployment("f3", ECHO_CRASH="1", ECHO_BANNER="again")) == 200


@asynchronous
async def test_functions_do_not_scale_to_zero(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path, idle_after=0.05, behaviour=FAASD) as gateway:
        await gateway.deploy(deployment(labels={"com.openfaas.scale.zero": "true"}))
        await gateway.wait_for_log_line("serving")
        assert await gateway.scale(0) == 400
        assert (await gateway.describe())["replicas"] == 1


@asynchronous
async def test_calls_of_a_starting_function_fail_at_once(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    async with echo_gateway(tmp_path, behaviour=FAASD) as gateway:
        await gateway.deploy(deployment(ECHO_READY_FILE=str(ready)))
        status, body = await gateway.echo()
        assert status == 500
        assert b"function_starting" in body
        ready.touch()
        while (answer := await gateway.echo())[0] == 500:
            pass
        assert answer == (200, b"hello")


@asynchronous
async def test_functions_get_chunked_bodies(tmp_path: Path) -> None:
    async with echo_gateway(tmp_path, behaviour=FAASD) as gateway:
        await gateway.deploy(deployment())
        while (await gateway.echo())[0] == 500:
            pass
        async with gateway.http.post("/function/echo/process", data=b"x" * 100) as answer:
            headers = {name.lower(): value for name, value in (await answer.json())["headers"]}
        assert headers["transfer-encoding"] == "chunked"
        assert "content-length" not in headers

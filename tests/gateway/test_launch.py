"""Functions of the embedded gateway run the installed code, in whichever folder the gateway starts."""

import asyncio
from pathlib import Path

import pytest
from yarl import URL

from control_plane.deployment.deploy import deploy_all
from control_plane.faas.client import Gateway
from control_plane.faas.connection import Address
from control_plane.faas.invoking.invoker import Invoker
from control_plane.gateway import embedded_gateway
from tests.support.api.api_server import in_thread
from tests.support.models.tiny_partition import TinyPartition


def test_code_in_the_current_folder_is_not_run(
    tiny: TinyPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`faasmoe stack` writes a folder `functions` next to stack.yml, without a compiled kernel."""
    (tmp_path / "functions").mkdir()
    (tmp_path / "functions" / "__init__.py").write_text("raise SystemExit('the wrong code')")
    monkeypatch.chdir(tmp_path)

    with in_thread(embedded_gateway(tiny.folder, "127.0.0.1", 0, None, 900.0)) as url:
        address = asyncio.run(deployed(tiny, url))
        invoker = Invoker(lambda _: address, lambda _: True)
        name = tiny.functions[0]
        invocation = tiny.invocation(name)
        tiny.check(invocation, invoker.begin({name: invocation}).wait()[name].output)
        invoker.close()


async def deployed(tiny: TinyPartition, url: URL) -> Address:
    """Deploy all functions; returns the gateway's address."""
    async with Gateway.connect(url, None) as gateway:
        async for _ in deploy_all(tiny.manifest, [gateway]):
            pass
        return gateway.address

"""Fixtures of several test files: tiny partitions, and the processes of expert functions."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from control_plane.architecture.choice import architecture_of
from control_plane.errors import FaaSMoEError
from control_plane.partition import companions, partitioner
from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.granularity import Granularity
from control_plane.partition.model.architecture import Architecture
from tests.support.functions.expert_process import ExpertProcess, expert_process
from tests.support.models.tiny_partition import TinyPartition

pytest_plugins = ["tests.support.models.chat_fixtures", "tests.support.models.engine_fixtures"]

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")

# Variables that a developer may have set, and that tests must not see.
SETTINGS = ("OPENFAAS_URL", "FAASMOE_URL", "FAASMOE_API_KEY")

StartFunction = Callable[..., ExpertProcess]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options that run tests/gateway/test_acceptance.py against an existing gateway."""
    group = parser.getgroup("gateway")
    group.addoption("--gateway", metavar="URL", help="Run the acceptance of gateways against this one.")
    group.addoption("--gateway-user", default="admin")
    group.addoption("--gateway-password-file", type=Path, metavar="FILE")
    group.addoption("--image-prefix", default="", metavar="REGISTRY/")
    group.addoption("--function-secret-file", type=Path, metavar="FILE")


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Environment of all tests and their processes: no address or key, and a temporary database."""
    with pytest.MonkeyPatch.context() as patch:
        for name in SETTINGS:
            patch.delenv(name, raising=False)
        patch.setenv("FAASMOE_DATABASE", str(tmp_path_factory.mktemp("tenants") / "faasmoe.db"))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def inspections() -> Iterator[None]:
    """Checkpoints are inspected in this process: one of its own takes seconds to import torch."""

    def inspect(checkpoint: Checkpoint) -> Architecture:
        try:
            return architecture_of(
                checkpoint.config, {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
            )
        except FaaSMoEError as error:
            raise type(error)(f"{checkpoint.folder}: {error}") from error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitioner, "inspect", inspect)
        patch.setattr(companions, "inspect", inspect)
        yield


@pytest.fixture(scope="session")
def partitions(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, TinyPartition]:
    """A partition for each dtype. Its three functions have 2, 2 and 1 of the 5 experts of all 3 layers."""
    folder = tmp_path_factory.mktemp("partitions")
    return {
        dtype: TinyPartition.make(folder / dtype, dtype, Granularity(2, 3))
        for dtype in ("f32", "bf16", "int8", "int4")
    }


@pytest.fixture(scope="session")
def tiny(partitions: Mapping[str, TinyPartition]) -> TinyPartition:
    """The tiny partition in float32."""
    return partitions["f32"]


@pytest.fixture(scope="session")
def function(tiny: TinyPartition) -> Iterator[ExpertProcess]:
    """A process of the first function of `tiny`, shared by tests that do not depend on earlier requests."""
    with expert_process(tiny.folder, tiny.functions[0]) as process:
        yield process


@pytest.fixture
def start_function() -> Iterator[StartFunction]:
    """A function like `expert_process` that starts processes for one test. They end with the test."""
    with ExitStack() as stack:

        def start(partition: Path, function: str, **options: Any) -> ExpertProcess:
            return stack.enter_context(expert_process(partition, function, **options))

        yield start

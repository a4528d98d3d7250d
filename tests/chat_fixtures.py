"""The tiny chat model, made once a session, for test modules that have this as their `pytest_plugins`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from control_plane.config import ServeConfig
from control_plane.partition.partitioner import partition
from control_plane.up import running
from tests.api_server import ApiClient, in_thread
from tests.tiny_chat_model import GRANULARITY, NAME, save_chat_checkpoint


@pytest.fixture(scope="session")
def chat_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint's folder. Not to be changed."""
    return save_chat_checkpoint(tmp_path_factory.mktemp("checkpoints") / NAME)


@pytest.fixture(scope="session")
def chat_partition(chat_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The partition's folder. Not to be changed."""
    folder = tmp_path_factory.mktemp("partitions") / NAME
    partition(chat_checkpoint, folder, granularity=GRANULARITY)
    return folder


@pytest.fixture(scope="module")
def api(chat_partition: Path) -> Iterator[ApiClient]:
    """The whole system around the partition, for one module. Its KV cache holds less than the context."""
    config = ServeConfig(port=0, kv_cache_mb=1, threads=1)
    with in_thread(running(chat_partition, config, 0, lambda line: None)) as url:
        yield ApiClient(url)

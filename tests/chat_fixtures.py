"""The tiny chat model, made once a session, for test modules that have this as their `pytest_plugins`."""

from pathlib import Path

import pytest

from control_plane.partition.partitioner import partition
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

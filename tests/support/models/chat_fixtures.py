"""Fixtures with the tiny chat model, which is made once per session."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from control_plane.partition.partitioner import partition
from tests.support.api.api_server import ApiClient, add_tenant, serving
from tests.support.models.tiny_chat_model import GRANULARITY, NAME, save_chat_checkpoint

NewTenant = Callable[..., ApiClient]


@pytest.fixture(scope="session")
def chat_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the checkpoint. Tests must not change it."""
    return save_chat_checkpoint(tmp_path_factory.mktemp("checkpoints") / NAME)


@pytest.fixture(scope="session")
def chat_partition(chat_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the partition. Tests must not change it."""
    folder = tmp_path_factory.mktemp("partitions") / NAME
    partition(chat_checkpoint, folder, granularity=GRANULARITY)
    return folder


@pytest.fixture(scope="module")
def api(chat_partition: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiClient]:
    """A client of the whole system, for one module; the server is open.

    Its KV cache holds fewer tokens than the context.
    """
    database = tmp_path_factory.mktemp("database") / "faasmoe.db"
    with serving(chat_partition, database, kv_cache_mb=1, open=True) as client:
        yield client


@pytest.fixture(scope="session")
def tokenizer(chat_checkpoint: Path) -> Any:
    """The model's tokenizer in transformers."""
    return AutoTokenizer.from_pretrained(chat_checkpoint)


@pytest.fixture(scope="session")
def unsplit(chat_checkpoint: Path) -> Any:
    """The unsplit model in transformers."""
    return AutoModelForCausalLM.from_pretrained(chat_checkpoint).requires_grad_(False)


@pytest.fixture(scope="session")
def expected(unsplit: Any, tokenizer: Any) -> Callable[[list[int], int], str]:
    """A function from prompt tokens and a number of new tokens to the unsplit model's greedy text."""

    def generate(token_ids: list[int], max_tokens: int) -> str:
        output = unsplit.generate(torch.tensor([token_ids]), max_new_tokens=max_tokens, do_sample=False)
        return str(tokenizer.decode(output[0, len(token_ids) :], skip_special_tokens=True))

    return generate


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database file of `server`."""
    return tmp_path_factory.mktemp("database") / "faasmoe.db"


@pytest.fixture(scope="module")
def server(chat_partition: Path, database: Path) -> Iterator[ApiClient]:
    """A client without a key of the whole system, for one module; the server requires keys."""
    with serving(chat_partition, database) as client:
        yield client


@pytest.fixture(scope="module")
def new_tenant(server: ApiClient, database: Path) -> NewTenant:
    """A function that adds a tenant with given limits to `server`, and returns a client with its key."""
    return lambda name, **limits: server.with_key(add_tenant(database, name, **limits))

"""Fixtures of the tiny chat model, which is made once a session."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from control_plane.partition.partitioner import partition
from tests.support.api_server import ApiClient, add_tenant, serving
from tests.support.tiny_chat_model import GRANULARITY, NAME, save_chat_checkpoint

NewTenant = Callable[..., ApiClient]


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
def api(chat_partition: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiClient]:
    """The whole system around the partition, for one module; it serves requests without keys.

    Its KV cache holds less than the context.
    """
    database = tmp_path_factory.mktemp("database") / "faasmoe.db"
    with serving(chat_partition, database, kv_cache_mb=1, open=True) as client:
        yield client


@pytest.fixture(scope="session")
def tokenizer(chat_checkpoint: Path) -> Any:
    """The model's tokenizer, as transformers has it."""
    return AutoTokenizer.from_pretrained(chat_checkpoint)


@pytest.fixture(scope="session")
def unsplit(chat_checkpoint: Path) -> Any:
    """The unsplit model in transformers."""
    return AutoModelForCausalLM.from_pretrained(chat_checkpoint).requires_grad_(False)


@pytest.fixture(scope="session")
def expected(unsplit: Any, tokenizer: Any) -> Callable[[list[int], int], str]:
    """The greedy text of the unsplit model, for a prompt and a number of tokens."""

    def generate(token_ids: list[int], max_tokens: int) -> str:
        output = unsplit.generate(torch.tensor([token_ids]), max_new_tokens=max_tokens, do_sample=False)
        return str(tokenizer.decode(output[0, len(token_ids) :], skip_special_tokens=True))

    return generate


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tenants of `server` are."""
    return tmp_path_factory.mktemp("database") / "faasmoe.db"


@pytest.fixture(scope="module")
def server(chat_partition: Path, database: Path) -> Iterator[ApiClient]:
    """The whole system, for one module; it serves nobody without a key."""
    with serving(chat_partition, database) as client:
        yield client


@pytest.fixture(scope="module")
def new_tenant(server: ApiClient, database: Path) -> NewTenant:
    """Adds a tenant of `server`, with those limits; gives its client."""
    return lambda name, **limits: server.with_key(add_tenant(database, name, **limits))

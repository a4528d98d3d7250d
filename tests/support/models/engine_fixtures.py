"""Fixtures of the tiny model and its engine."""

from collections.abc import Iterator

import pytest

from tests.support.api.api_server import in_thread
from tests.support.models.tiny_engine import MAX_BATCH_TOKENS, MAX_SEQUENCES, Reference
from tests.support.running import Served, served


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The model and its partition, shared by all tests: do not change them."""
    return Reference.make(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def serving(reference: Reference) -> Iterator[Served]:
    """The model's functions on a gateway, and an engine. Each test leaves them idle."""
    with in_thread(
        served(reference.folder, max_batch_tokens=MAX_BATCH_TOKENS, max_sequences=MAX_SEQUENCES)
    ) as serving:
        yield serving

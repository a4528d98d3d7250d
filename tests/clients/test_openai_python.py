"""OpenAI's client for Python."""

import pytest
from openai import OpenAI

from tests.clients.conftest import MODEL, Server


@pytest.fixture(scope="module")
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=server.v1, api_key=server.key)


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "How is it?"}])
    assert answer.choices[0].message.content == "It is sunny in Rome."

"""Files and batches through OpenAI's own client."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai

from control_plane.api.batches.records import OPEN
from tests.support.api.api_server import TIMEOUT_SECONDS, ApiClient, openai_client
from tests.support.models.tiny_chat_model import NAME

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT: dict[str, Any] = {"model": NAME, "prompt": "the cat", "max_tokens": 4, "temperature": 0}


def line(custom_id: str, url: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    """A line of an input file: `PROMPT` with some fields changed."""
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {**PROMPT, **body}}


def upload(client: openai.OpenAI, lines: list[Any]) -> openai.types.FileObject:
    """Upload an input file. A line that is a string is sent as it is."""
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    return client.files.create(file=("night.jsonl", text.encode()), purpose="batch")


def begin(client: openai.OpenAI, lines: list[Any], endpoint: Any = COMPLETIONS) -> openai.types.Batch:
    """Upload an input file, and create a batch of it."""
    return client.batches.create(
        input_file_id=upload(client, lines).id, endpoint=endpoint, completion_window="24h"
    )


def ended(client: openai.OpenAI, batch: openai.types.Batch) -> openai.types.Batch:
    """Wait until a batch has ended. Pauses between requests, since batches only run while there are none."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while (found := client.batches.retrieve(batch.id)).status in OPEN:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def answers(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    """The lines of a file by their custom_id, which must differ."""
    if file_id is None:
        return {}
    found = [json.loads(text) for text in client.files.content(file_id).text.splitlines()]
    by_id = {each["custom_id"]: each for each in found}
    assert len(by_id) == len(found)
    return by_id


def completed(client: openai.OpenAI, batch: openai.types.Batch) -> int:
    """The number of lines that have been answered."""
    counts = client.batches.retrieve(batch.id).request_counts
    return counts.completed if counts else 0


@contextmanager
def client_of(api: ApiClient) -> Iterator[openai.OpenAI]:
    """OpenAI's client with the key of a tenant."""
    assert api.key
    with openai_client(api, api.key) as client:
        yield client

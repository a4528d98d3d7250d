"""Batches answer as single requests do, and give way to them, as OpenAI's own client sees it."""

import time
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response

from tests.support.api.api_server import (
    ASK_TOKENS,
    ApiClient,
    add_tenant,
    completion,
    eventually,
    holding,
    usage_of,
)
from tests.support.api.batches import (
    CHAT,
    COMPLETIONS,
    PROMPT,
    answers,
    begin,
    client_of,
    completed,
    ended,
    line,
    upload,
)
from tests.support.models.chat_fixtures import NewTenant
from tests.support.models.tiny_chat_model import NAME

pytestmark = pytest.mark.slow


def test_a_batch_of_responses(new_tenant: NewTenant) -> None:
    asked: Any = {"model": NAME, "input": "the cat", "max_output_tokens": 4, "temperature": 0}
    head = {"method": "POST", "url": "/v1/responses"}
    with client_of(new_tenant("responses")) as client:
        lines = [
            {**head, "custom_id": "plain", "body": asked},
            {**head, "custom_id": "earlier", "body": {**asked, "previous_response_id": "resp_1"}},
            {**head, "custom_id": "streams", "body": {**asked, "stream": True}},
        ]
        batch = ended(client, begin(client, lines, "/v1/responses"))
        good, bad = answers(client, batch.output_file_id), answers(client, batch.error_file_id)
        assert (set(good), set(bad)) == ({"plain"}, {"earlier", "streams"})
        response = Response.model_validate(good["plain"]["response"]["body"])
        assert response.output_text
        assert response.output_text == client.responses.create(**asked).output_text
        assert bad["earlier"]["response"]["body"]["error"]["param"] == "previous_response_id"


def test_a_batch_has_the_answers_of_single_requests(new_tenant: NewTenant, database: Path) -> None:
    api = new_tenant("night")
    with client_of(api) as client:
        lines = [
            line("plain"),
            line("two", n=2, seed=7, temperature=1),
            line("wrong", temperature=9),
            line("other model", model="gpt-4"),
            line("streams", stream=True),
        ]
        file = upload(client, lines)
        assert (file.purpose, file.filename, file.status) == ("batch", "night.jsonl", "processed")
        assert client.files.retrieve(file.id) == file
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/completions",
            completion_window="24h",
            metadata={"job": "nightly"},
        )
        assert (batch.object, batch.metadata, batch.endpoint) == ("batch", {"job": "nightly"}, COMPLETIONS)
        batch = ended(client, batch)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": 5, "completed": 2, "failed": 3}
        assert batch.completed_at
        good, bad = answers(client, batch.output_file_id), answers(client, batch.error_file_id)
        assert (set(good), set(bad)) == ({"plain", "two"}, {"wrong", "other model", "streams"})
        for custom_id, body in (("plain", {}), ("two", {"n": 2, "seed": 7, "temperature": 1})):
            response = good[custom_id]["response"]
            assert (response["status_code"], good[custom_id]["error"]) == (200, None)
            single = client.completions.create(**{**PROMPT, **body})
            choices = openai.types.Completion.model_validate(response["body"]).choices
            assert choices == single.choices
        statuses = {custom_id: each["response"]["status_code"] for custom_id, each in bad.items()}
        assert statuses == {"wrong": 400, "other model": 404, "streams": 400}
        assert bad["wrong"]["response"]["body"]["error"]["param"] == "temperature"
        assert [each.id for each in client.batches.list()] == [batch.id]
        assert {each.id for each in client.files.list(purpose="batch_output")} == {
            batch.output_file_id,
            batch.error_file_id,
        }
        # 3 answers of 4 tokens to 2 prompts of 2, as a batch and alone.
        assert usage_of(database, "night").generated_tokens == 2 * 12


def test_a_batch_of_chats(new_tenant: NewTenant) -> None:
    with client_of(new_tenant("chatty")) as client:
        body = {
            "model": NAME,
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 5,
            "temperature": 0,
        }
        chats = [{"custom_id": f"c{n}", "method": "POST", "url": CHAT, "body": body} for n in range(20)]
        batch = ended(client, begin(client, chats, CHAT))
        found = answers(client, batch.output_file_id)
        assert set(found) == {f"c{n}" for n in range(20)}
        single = client.chat.completions.create(**body)  # type: ignore[call-overload]
        texts = {each["response"]["body"]["choices"][0]["message"]["content"] for each in found.values()}
        assert texts == {single.choices[0].message.content}


@pytest.mark.parametrize(
    ("lines", "where", "words"),
    [
        (["not json"], 1, "JSON"),
        ([line("a"), line("a")], 2, "another line"),
        ([line("a"), line("b", url=CHAT)], 2, "endpoint"),
        ([{**line("a"), "method": "GET"}], 1, "method"),
        ([line("a"), [1]], 2, "object"),
        (["  "], None, "no requests"),
    ],
)
def test_an_input_file_with_a_fault(new_tenant: NewTenant, lines: list[Any], where: Any, words: str) -> None:
    with client_of(new_tenant(f"faulty-{abs(hash(words))}")) as client:
        batch = ended(client, begin(client, lines))
        assert batch.status == "failed"
        assert batch.errors
        assert batch.errors.data
        assert batch.errors.data[0].line == where
        assert words in str(batch.errors.data[0].message)
        assert batch.output_file_id is None


def test_a_batch_waits_while_others_are_served_and_can_be_cancelled(
    new_tenant: NewTenant, server: ApiClient, database: Path
) -> None:
    watcher = server.with_key(add_tenant(database, "batch-watcher", operator=True))
    with client_of(new_tenant("patient")) as client:
        with holding(new_tenant("busy")):
            long = [line(str(n), max_tokens=400, ignore_eos=True) for n in range(29)]
            batch = begin(client, [line("short"), *long])
            eventually(lambda: client.batches.retrieve(batch.id).status, "in_progress")
            # Somebody is served, so nothing of it is in the engine, whatever else comes and goes.
            for _ in range(5):
                assert completion(new_tenant(f"guest-{time.monotonic_ns()}")).status == 200
            assert watcher.status()["engine"]["running"] + watcher.status()["engine"]["waiting"] <= 1
            assert usage_of(database, "patient").requests == 0
            with pytest.raises(openai.BadRequestError, match="has not ended"):
                client.files.delete(batch.input_file_id)

        eventually(lambda: completed(client, batch) >= 1, True)
        client.batches.cancel(batch.id)
        batch = ended(client, batch)
        assert batch.status == "cancelled"
        assert batch.request_counts
        assert batch.request_counts.completed < 30
        assert len(answers(client, batch.output_file_id)) == batch.request_counts.completed
        assert client.batches.cancel(batch.id).status == "cancelled"


@pytest.mark.parametrize(
    ("limits", "number"),
    # 40 requests of 6 tokens empty the bucket, which refills 4 tokens a second.
    [({"tpm": 40 * ASK_TOKENS}, 42), ({"max_concurrency": 1}, 3)],
)
def test_a_batch_waits_for_its_tenant_s_limits(
    new_tenant: NewTenant, limits: dict[str, int], number: int
) -> None:
    with client_of(new_tenant(f"limited-{number}", **limits)) as client:
        batch = ended(client, begin(client, [line(str(n)) for n in range(number)]))
        assert batch.request_counts
        assert batch.request_counts.to_dict() == {"total": number, "completed": number, "failed": 0}

"""What a tenant's prompts have computed is there for its next ones, and for nobody else's."""

import pytest

from tests.support.api.api_server import COMPLETION, ApiClient, Samples
from tests.support.models.chat_fixtures import NewTenant

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
PROMPT = "the cat sat on the mat and looked at the dog, who looked at the cat on the mat"
ASK = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0}


def cached(api: ApiClient, **changes: object) -> int:
    usage = api.post(COMPLETION, **{**ASK, **changes})["usage"]
    found: int = usage["prompt_tokens_details"]["cached_tokens"]
    assert found < usage["prompt_tokens"]
    return found


def test_usage_says_how_much_was_there(new_tenant: NewTenant) -> None:
    api = new_tenant("talker")
    assert cached(api) == 0
    answer = api.post(COMPLETION, **ASK)
    whole = answer["usage"]["prompt_tokens"]
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": whole - 1}
    *_, last = api.stream(COMPLETION, **ASK, stream_options={"include_usage": True})
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": whole - 1}
    # Answers to one prompt have it once.
    assert cached(api, n=3) == whole - 1
    longer = api.post(COMPLETION, **{**ASK, "prompt": PROMPT + answer["choices"][0]["text"] + " again"})
    assert longer["usage"]["prompt_tokens_details"]["cached_tokens"] >= whole - 1


def test_no_tenant_sees_what_another_has_asked(new_tenant: NewTenant) -> None:
    assert [cached(new_tenant(name)) for name in ("asker", "prober")] == [0, 0]


def test_a_salt_separates_users_of_one_tenant(new_tenant: NewTenant) -> None:
    api = new_tenant("platform")
    assert [cached(api, cache_salt=salt) for salt in ("one", "two", None)] == [0, 0, 0]
    assert all(cached(api, cache_salt=salt) for salt in ("one", "two", None))


def test_a_chat_s_next_turn(new_tenant: NewTenant) -> None:
    api = new_tenant("chatter")
    messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": "what is on the mat?"}]
    first = api.post(CHAT, messages=messages, max_tokens=12, temperature=0)
    messages += [first["choices"][0]["message"], {"role": "user", "content": "and who looked?"}]
    second = api.post(CHAT, messages=messages, max_tokens=12, temperature=0)
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"] - 1


def test_other_apis_report_it_in_their_words(new_tenant: NewTenant) -> None:
    api = new_tenant("polyglot")
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8, "temperature": 0}
    first, second = (api.post("/v1/messages", **body)["usage"] for _ in range(2))
    assert first["cache_read_input_tokens"] == 0
    assert second["cache_read_input_tokens"] == first["input_tokens"] - 1
    assert second["input_tokens"] == 1
    asked = {"input": PROMPT, "max_output_tokens": 8, "temperature": 0}
    usage = api.post("/v1/responses", **asked)["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] > 0


def test_metrics_and_status(new_tenant: NewTenant, server: ApiClient) -> None:
    api = new_tenant("counted")
    before = api.metrics()
    cached(api)
    there = cached(api)
    name = "faasmoe:prefix_cache_hits_total"

    def hits(samples: Samples) -> float:
        return sum(value for (each, _), value in samples.items() if each == name)

    assert hits(api.metrics()) - hits(before) == there
    engine = api.status()["engine"]
    assert engine["kv_cache_used"] == 0
    assert 0 < engine["prefix_cache_used"] <= 1

"""Keys that expire, and budgets of a day and a month, as OpenAI's own client meets them."""

import time
from pathlib import Path

import openai
import pytest

from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.tenants import Limits
from tests.support.api.api_server import ASK_TOKENS, ApiClient, add_tenant, openai_client, serving, usage_of
from tests.support.models.chat_fixtures import NewTenant
from tests.support.models.tiny_chat_model import NAME

pytestmark = pytest.mark.slow


def ask(server: ApiClient, key: str, retries: int = 2) -> openai.types.Completion:
    with openai_client(server, key, retries) as client:
        return client.completions.create(model=NAME, prompt="the cat", max_tokens=4, temperature=0)


def test_every_key_of_a_tenant_works_until_its_end(server: ApiClient, database: Path) -> None:
    first = add_tenant(database, "several")
    with TenantStore.open(database) as store:
        second = store.add_key("several", "second", time.time() + 3600)
        over = store.add_key("several", "over", time.time() - 1)
    for key in (first, second):
        ask(server, key)
    with pytest.raises(openai.AuthenticationError) as expired:
        ask(server, over)
    assert expired.value.code == "expired_api_key"
    assert "has expired" in str(expired.value)
    with pytest.raises(openai.AuthenticationError) as wrong:
        ask(server, over[:-1])
    assert wrong.value.code == "invalid_api_key"
    assert "expired" not in str(wrong.value)
    with TenantStore.open(database) as store:
        store.revoke_key("several", "second")
    with pytest.raises(openai.AuthenticationError):
        ask(server, second)
    assert usage_of(database, "several").requests == 2


def test_an_open_server_does_not_take_an_expired_key_for_nobody_s(
    chat_partition: Path, tmp_path: Path
) -> None:
    database = tmp_path / "faasmoe.db"
    add_tenant(database, "acme")
    with TenantStore.open(database) as store:
        over = store.add_key("acme", "over", time.time() - 1)
    with serving(chat_partition, database, open=True) as api:
        ask(api, "an-arbitrary-key")
        with pytest.raises(openai.AuthenticationError, match="has expired"):
            ask(api, over)


@pytest.mark.parametrize("period", ["day", "month"])
def test_a_budget_that_is_used_up(
    new_tenant: NewTenant, server: ApiClient, database: Path, period: str
) -> None:
    name = f"thrifty-{period}"
    limits = {f"tokens_per_{period}": 2 * ASK_TOKENS + 1}
    api = new_tenant(name, **limits)
    assert api.key
    for _ in range(2):
        ask(server, api.key)
    with TenantStore.open(database) as store:
        spent = store.spent(name)
    with pytest.raises(openai.RateLimitError) as refused:
        ask(server, api.key)
    assert (refused.value.code, refused.value.type) == ("insufficient_quota", "insufficient_quota")
    assert f"13 tokens per {period} (UTC), of which 12 are used" in str(refused.value)
    headers = refused.value.response.headers
    ends = spent.day_ends if period == "day" else spent.month_ends
    assert abs(int(headers["retry-after"]) - ends) < 60
    assert headers["x-should-retry"] == "false"
    assert usage_of(database, name).requests == 2
    # A raised limit applies at once, and a month's beginning is a new budget: see tests/tenancy.
    with TenantStore.open(database) as store:
        store.update(name, Limits(), operator=False)
    ask(server, api.key)

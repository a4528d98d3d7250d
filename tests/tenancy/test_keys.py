"""Several keys of a tenant, keys that expire, and keys of databases that older versions made."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from control_plane.errors import ExpiredApiKey, InvalidApiKey, TenancyError, UnknownTenant
from control_plane.tenancy.declared import DeclaredTenant
from control_plane.tenancy.keys import hash_key
from control_plane.tenancy.storage.database import open_database
from control_plane.tenancy.storage.migrations import APPLICATION_ID, MIGRATIONS
from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.tenants import Limits

NOON = 1_796_000_000.0
OLD_KEY = "a-key-from-before-the-migration"


class Clock:
    """A clock that tests set."""

    now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[TenantStore]:
    with open_database(tmp_path / "faasmoe.db") as database:
        yield TenantStore(database, clock)


def names(store: TenantStore, tenant: str = "acme") -> list[str]:
    return [key.name for key in store.keys(tenant)]


def test_each_key_of_a_tenant_is_its_own(store: TenantStore) -> None:
    first = store.add("acme", Limits(rpm=5), operator=False)
    keys = [first, store.add_key("acme", "laptop", None), store.add_key("acme", "ci", None)]
    assert {store.authenticate(key).name for key in keys} == {"acme"}
    assert len(set(keys)) == 3
    assert names(store) == ["ci", "laptop", "main"]
    with pytest.raises(TenancyError, match="tenant acme has a key ci already"):
        store.add_key("acme", "ci", None)

    store.revoke_key("acme", "laptop")
    with pytest.raises(InvalidApiKey):
        store.authenticate(keys[1])
    with pytest.raises(TenancyError, match="tenant acme has no key 'laptop'"):
        store.revoke_key("acme", "laptop")
    renewed = store.rotate_key("acme")
    with pytest.raises(InvalidApiKey):
        store.authenticate(first)
    assert {store.authenticate(key).name for key in (renewed, keys[2])} == {"acme"}

    store.remove("acme")
    for key in (renewed, keys[2]):
        with pytest.raises(InvalidApiKey):
            store.authenticate(key)
    store.add("acme", Limits(), operator=False)
    assert names(store) == ["main"]


def test_a_key_ends_at_its_time(store: TenantStore, clock: Clock) -> None:
    lasting = store.add("acme", Limits(), operator=False)
    brief = store.add_key("acme", "brief", NOON + 60)
    clock.now = NOON + 59.9
    assert store.authenticate(brief).name == "acme"
    clock.now = NOON + 60
    with pytest.raises(ExpiredApiKey, match="has expired: it was valid until 2026-11-30 00:54 UTC"):
        store.authenticate(brief)
    # Whoever does not have the key learns nothing of it.
    with pytest.raises(InvalidApiKey, match="Incorrect API key provided: there is no tenant") as stranger:
        store.authenticate(brief[:-1])
    assert not isinstance(stranger.value, ExpiredApiKey)
    assert store.authenticate(lasting).name == "acme"
    assert [(key.name, key.has_expired(clock.now)) for key in store.keys("acme")] == [
        ("brief", True),
        ("main", False),
    ]


def test_unknown_tenants_have_no_keys(store: TenantStore) -> None:
    for call in (
        lambda: store.keys("eve"),
        lambda: store.add_key("eve", "ci", None),
        lambda: store.revoke_key("eve", "ci"),
    ):
        with pytest.raises(UnknownTenant):
            call()


def test_a_declared_key_is_the_main_one(store: TenantStore, clock: Clock) -> None:
    main = store.add("acme", Limits(), operator=False)
    other = store.add_key("acme", "ci", NOON + 60)
    store.declare([DeclaredTenant("acme", Limits(), key=OLD_KEY)], uuid4().hex)
    assert store.authenticate(OLD_KEY).name == store.authenticate(other).name == "acme"
    with pytest.raises(InvalidApiKey):
        store.authenticate(main)
    # Somebody puts a key that was added by its name into the config file: it is the main one from now on.
    clock.now += 10
    for _ in range(2):
        store.declare([DeclaredTenant("acme", Limits(), key=other)], uuid4().hex)
    assert [(key.name, key.expires, key.created) for key in store.keys("acme")] == [("main", None, clock.now)]


def test_an_older_database_keeps_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "faasmoe.db"
    minute = int(NOON // 60)
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        for number, statements in enumerate(MIGRATIONS[:3], 1):
            for statement in statements:
                old.execute(statement)
            old.execute(f"PRAGMA user_version = {number}")
        old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        old.execute(
            "INSERT INTO tenants VALUES ('acme', ?, 2.5, 60, NULL, 8, NULL, 64, 1, 5.0)", (hash_key(OLD_KEY),)
        )
        old.execute("INSERT INTO tenants VALUES ('bob', NULL, 1.0, NULL, NULL, NULL, NULL, NULL, 0, 6.0)")
        old.executemany(
            "INSERT INTO usage VALUES (?, ?, 1, 10, 5, 0, 0)",
            [("acme", minute), ("acme", minute + 1), ("gone", minute), ("acme", 0)],
        )
    with TenantStore.open(path) as store:
        acme = store.authenticate(OLD_KEY)
        assert (acme.name, acme.operator, acme.created) == ("acme", True, 5.0)
        assert acme.limits == Limits(weight=2.5, rpm=60, max_concurrency=8, max_output=64)
        assert [(key.name, key.created, key.expires) for key in store.keys("acme")] == [("main", 5.0, None)]
        assert store.keys("bob") == []
        assert [store.spent(name, NOON).day for name in ("acme", "gone", "bob")] == [30, 15, 0]
        assert store.spent("acme", 0.0).month == 15

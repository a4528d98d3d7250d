"""Tenants, keys and usage in the database, across connections and processes."""

import os
import random
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.errors import ConfigError, InvalidApiKey, TenancyError, UnknownTenant
from control_plane.tenancy.declared import DeclaredTenant
from control_plane.tenancy.storage.store import TenantStore
from control_plane.tenancy.tenants import Limits
from control_plane.tenancy.usage import Booking, Entry, Usage

LIMITS = Limits(weight=2.5, rpm=60, tpm=20_000, max_concurrency=8, max_context=512, max_output=64)
CHOSEN_KEY = "a-key-that-somebody-chose"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "faasmoe.db"


@pytest.fixture
def store(path: Path) -> Iterator[TenantStore]:
    with TenantStore.open(path) as store:
        yield store


def refusal(path: Path) -> str:
    """The error of opening a file that must be refused."""
    with pytest.raises(ConfigError) as caught, TenantStore.open(path):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def booking(tenant: str, at: float = 0.0, requests: int = 1, seconds: float = 0.0) -> Booking:
    return Booking(tenant, at, requests, 10, 5, 1.5, seconds)


def book(store: TenantStore, bookings: Sequence[Booking]) -> None:
    store.book([Entry(uuid4().hex, 1, tuple(bookings))])


def test_a_tenant_is_found_by_name_and_by_key(store: TenantStore, path: Path) -> None:
    key = store.add("acme", LIMITS, operator=True)
    with TenantStore.open(path) as other:
        tenant = other.get("acme")
        assert other.authenticate(key) == tenant
        assert list(other.list()) == [tenant]
    assert (tenant.name, tenant.limits, tenant.operator) == ("acme", LIMITS, True)
    assert tenant.created > 0


def test_keys_differ_and_must_match_in_full(store: TenantStore) -> None:
    keys = {name: store.add(name, Limits(), operator=False) for name in ("acme", "bob")}
    assert {name: store.authenticate(key).name for name, key in keys.items()} == {
        "acme": "acme",
        "bob": "bob",
    }
    assert all(key.startswith("fm-") and len(key) >= 43 for key in keys.values())
    for wrong in (
        "",
        "fm-",
        keys["acme"][:-1],
        keys["acme"] + "x",
        keys["acme"].swapcase(),
        "\udcff",
        "é" * 40,
    ):
        with pytest.raises(InvalidApiKey):
            store.authenticate(wrong)


def test_the_file_contains_no_key(store: TenantStore, path: Path) -> None:
    keys = [store.add("acme", Limits(), operator=False), store.rotate_key("acme")]
    stored = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"acme" in stored
    assert not any(key.removeprefix("fm-").encode() in stored for key in keys)


def test_only_the_owner_may_read_the_file(store: TenantStore, path: Path) -> None:
    store.add("acme", Limits(), operator=False)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_a_chosen_key(store: TenantStore) -> None:
    assert store.add("acme", Limits(), operator=False, key=CHOSEN_KEY) == CHOSEN_KEY
    assert store.authenticate(CHOSEN_KEY).name == "acme"
    with pytest.raises(TenancyError, match="tenant bob: its key belongs to another tenant"):
        store.add("bob", Limits(), operator=False, key=CHOSEN_KEY)
    for key, problem in (("x" * 19, "at least 20"), ("x" * 20 + "\n", "printable"), ("x y" * 10, "no space")):
        with pytest.raises(ConfigError, match=problem):
            store.add("bob", Limits(), operator=False, key=key)
    assert [tenant.name for tenant in store.list()] == ["acme"]


def test_a_name_can_be_used_only_once(store: TenantStore) -> None:
    key = store.add("acme", LIMITS, operator=False)
    with pytest.raises(TenancyError, match="there is a tenant acme already"):
        store.add("acme", Limits(), operator=True)
    assert store.authenticate(key).limits == LIMITS


def test_a_new_key_replaces_the_previous_one(store: TenantStore, path: Path) -> None:
    before = store.add("acme", LIMITS, operator=False)
    with TenantStore.open(path) as other:
        after = other.rotate_key("acme")
    with pytest.raises(InvalidApiKey):
        store.authenticate(before)
    assert store.authenticate(after).limits == LIMITS


def test_an_update_applies_at_once(store: TenantStore, path: Path) -> None:
    key = store.add("acme", LIMITS, operator=False)
    with TenantStore.open(path) as other:
        other.update("acme", Limits(rpm=1), operator=True)
    tenant = store.authenticate(key)
    assert (tenant.limits, tenant.operator) == (Limits(rpm=1), True)


def test_usage_outlives_its_tenant(store: TenantStore, path: Path) -> None:
    key = store.add("acme", LIMITS, operator=False)
    book(store, [booking("acme")])
    with TenantStore.open(path) as other:
        other.remove("acme")
    with pytest.raises(InvalidApiKey):
        store.authenticate(key)
    assert store.list() == []
    assert [usage.tenant for usage in store.usage(None, None)] == ["acme"]


def test_unknown_tenants(store: TenantStore) -> None:
    for call in (
        lambda: store.get("eve"),
        lambda: store.remove("eve"),
        lambda: store.rotate_key("eve"),
        lambda: store.update("eve", Limits(), operator=True),
    ):
        with pytest.raises(UnknownTenant, match="there is no tenant 'eve'"):
            call()
    assert store.list() == []


def test_declared_tenants_are_added_and_updated(store: TenantStore) -> None:
    own_key = store.add("acme", LIMITS, operator=False)
    others_key = store.add("other", LIMITS, operator=False)
    created = store.get("acme").created
    declared = [
        DeclaredTenant("acme", Limits(rpm=5), operator=True),
        DeclaredTenant("bob", Limits(weight=3), key=CHOSEN_KEY),
    ]
    for _ in range(2):
        store.declare(declared, uuid4().hex)
        assert [tenant.name for tenant in store.list()] == ["acme", "bob", "other"]
    acme = store.authenticate(own_key)
    assert (acme.limits, acme.operator, acme.created) == (Limits(rpm=5), True, created)
    assert store.authenticate(CHOSEN_KEY).limits == Limits(weight=3)
    assert store.authenticate(others_key).limits == LIMITS


def test_declared_tenants_are_taken_all_or_none(store: TenantStore) -> None:
    store.add("acme", LIMITS, operator=False, key=CHOSEN_KEY)
    declared = [DeclaredTenant("bob", Limits()), DeclaredTenant("eve", Limits(), key=CHOSEN_KEY)]
    with pytest.raises(TenancyError, match="tenant eve: its key belongs to another tenant"):
        store.declare(declared, uuid4().hex)
    assert [tenant.name for tenant in store.list()] == ["acme"]


def test_a_declared_tenant_without_a_key_gets_one_later(store: TenantStore) -> None:
    store.declare([DeclaredTenant("acme", Limits()), DeclaredTenant("bob", Limits())], "one")
    assert store.authenticate(store.rotate_key("acme")).name == "acme"


def test_usage_adds_up_by_tenant_and_since(store: TenantStore) -> None:
    book(store, [booking("bob", at=59.9), booking("acme", at=60.0), booking("acme", at=119.0, requests=2)])
    book(store, [booking("acme", at=180.0, seconds=0.25)])
    acme, bob = store.usage(None, None)
    assert acme == Usage("acme", 4, 30, 15, 4.5, 0.25)
    assert bob == Usage("bob", 1, 10, 5, 1.5, 0.0)
    assert list(store.usage("bob", None)) == [bob]
    assert list(store.usage("eve", None)) == []
    # `since` is rounded down to its minute.
    assert [usage.requests for usage in store.usage(None, 100.0)] == [3 + 1]
    assert [usage.requests for usage in store.usage("acme", 120.0)] == [1]
    assert list(store.usage(None, 240.0)) == []


amounts = st.tuples(
    st.sampled_from(["acme", "bob"]),
    st.integers(0, 2**40),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
)


@settings(deadline=None)
@given(st.lists(amounts, max_size=30), st.randoms(use_true_random=False))
def test_sums_are_exact_in_any_order(amounts: list[tuple[str, int, int, int]], order: random.Random) -> None:
    """Sums of fractions are exact to a millionth of an invocation and to a nanosecond."""
    bookings = [
        Booking(tenant, count % 1000, 1, count, count // 3, micro / 1e6, nano / 1e9)
        for tenant, count, micro, nano in amounts
    ]
    order.shuffle(bookings)
    wanted = []
    for name in sorted({tenant for tenant, *_ in amounts}):
        mine = [values for tenant, *values in amounts if tenant == name]
        counts = [count for count, _, _ in mine]
        micros, nanos = (sum(values) for values in list(zip(*mine, strict=True))[1:])
        output = sum(count // 3 for count in counts)
        wanted.append(Usage(name, len(mine), sum(counts), output, micros / 1e6, nanos / 1e9))
    with TemporaryDirectory() as folder, TenantStore.open(Path(folder, "faasmoe.db")) as store:
        for start in range(0, len(bookings), 4):
            book(store, bookings[start : start + 4])
        assert list(store.usage(None, None)) == wanted


def test_usage_is_stored_per_minute(store: TenantStore, path: Path) -> None:
    book(store, [booking("acme", at=second / 100) for second in range(12_000)])
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("SELECT count(*) FROM usage").fetchone() == (2,)
    assert store.usage("acme", None)[0].requests == 12_000


def test_bookings_are_written_all_or_none(store: TenantStore, path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute(
            "CREATE TRIGGER full BEFORE INSERT ON usage WHEN NEW.tenant = 'bob' "
            "BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
        )
    with pytest.raises(TenancyError, match="disk is full"):
        book(store, [booking("acme"), booking("bob"), booking("carl")])
    assert list(store.usage(None, None)) == []
    book(store, [booking("acme")])
    assert [usage.tenant for usage in store.usage(None, None)] == ["acme"]


def test_opening_the_file_again_changes_nothing(path: Path) -> None:
    with TenantStore.open(path) as store:
        key = store.add("acme", LIMITS, operator=False)
    before = path.read_bytes()
    with TenantStore.open(path) as store:
        assert store.authenticate(key).limits == LIMITS
    assert path.read_bytes() == before


def test_processes_that_create_the_file_at_the_same_time(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from control_plane.tenancy.storage.store import TenantStore; "
        "from control_plane.tenancy.tenants import Limits; sys.stdin.read(); "
        "store = TenantStore.open(Path(sys.argv[1])); store.__enter__().add(sys.argv[2], Limits(), False)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, path, f"tenant-{number}"], stdin=subprocess.PIPE)
        for number in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(60) for process in processes] == [0, 0, 0, 0]
    with TenantStore.open(path) as store:
        assert len(store.list()) == 4


def test_a_file_that_another_process_is_about_to_write_for_the_first_time(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("SELECT count(*) FROM sqlite_master").fetchone()
        commit = threading.Timer(0.1, other.execute, ("COMMIT",))
        commit.start()
        with TenantStore.open(path) as store:
            store.add("acme", LIMITS, operator=False)
            assert [tenant.name for tenant in store.list()] == ["acme"]
        commit.join()


@pytest.mark.parametrize("content", [b"just text, longer than a header\n" * 40, bytes(range(256)) * 16])
def test_a_file_that_is_not_a_database(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    assert refusal(path) == f"cannot open the database {path}: file is not a database"
    assert path.read_bytes() == content


def test_another_program_s_database(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    assert refusal(path) == f"cannot open the database {path}: it is another program's"
    assert path.read_bytes() == before


def test_a_newer_database(path: Path) -> None:
    with TenantStore.open(path) as store:
        store.add("acme", LIMITS, operator=False)
    with closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA user_version = 99")
    assert "belongs to a newer version of FaaSMoE" in refusal(path)


def test_paths_where_no_database_can_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refusal(tmp_path) == f"cannot open the database {tmp_path}: Is a directory"
    for path in (tmp_path / "file" / "x.db", tmp_path / "file" / "folder" / "x.db", Path("/dev/full")):
        assert refusal(path).startswith(f"cannot open the database {path}: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_database(path: Path) -> None:
    with TenantStore.open(path):
        pass
    path.chmod(0o400)
    assert refusal(path) == f"cannot open the database {path}: Permission denied"

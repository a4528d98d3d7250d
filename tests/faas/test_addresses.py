"""Which announced addresses are called, and the choice between an address and the gateway."""

from ipaddress import ip_network

import pytest

from control_plane.config import PRIVATE_NETWORKS
from control_plane.faas.addresses import MAX_AVOID_SECONDS, SILENT_AVOID_SECONDS, AddressBook, direct_address
from control_plane.faas.connection import Address

HERE = Address("10.0.0.5", 8080)
THERE = Address("10.0.0.6", 8080)
NETWORKS = [ip_network(network) for network in PRIVATE_NETWORKS]
LOCAL, DISTANT = Address("127.0.0.1", 8080), Address("10.0.0.1", 8080)


@pytest.mark.parametrize(
    ("announced", "host"),
    [
        ("10.62.0.7:8080", "10.62.0.7"),
        ("172.31.255.1:1", "172.31.255.1"),
        ("192.168.1.2:65535", "192.168.1.2"),
        ("100.64.3.4:8080", "100.64.3.4"),
        ("fd00::7:8080", "fd00::7"),
        ("[fd00::7]:8080", "fd00::7"),
        ("::ffff:10.62.0.7:8080", "10.62.0.7"),
    ],
)
def test_private_addresses_are_called(announced: str, host: str) -> None:
    port = int(announced.rpartition(":")[2])
    for gateway in (LOCAL, DISTANT):
        assert direct_address(announced, gateway, NETWORKS) == Address(host, port)
        assert direct_address(announced, gateway, ()) is None


@pytest.mark.parametrize(
    "announced",
    [
        *("", ":", "8080", "nowhere", "function:8080", "localhost:8080", "10.0.0.5"),
        *("10.0.0.5:0", "10.0.0.5:65536", "10.0.0.5:+80", "10.0.0.5: 80", "10.0.0.5:-1", "10.0.0.5:٨٠"),
        *("10.0.0.5:080", "10.0.0.5:8080000000000000000000", "10.0.0.5:80_80", "10.0.0.5:80/"),
        *("10.5:8080", "127.1:8080", "0x0a000005:8080", "167772165:8080", "010.0.0.5:8080", " 10.0.0.5:8080"),
        *("0.0.0.0:8080", "[::]:8080", ":::8080", "::ffff:0.0.0.0:8080"),
        *("224.0.0.1:8080", "[ff02::1]:8080", "255.255.255.255:8080"),
        *("169.254.169.254:80", "[fe80::1]:80", "[fe80::1%lo]:80", "::ffff:169.254.169.254:80"),
        *("8.8.8.8:8080", "[2001:db8::1]:8080", "::ffff:8.8.8.8:8080", "user@10.0.0.5:80"),
    ],
)
def test_other_addresses_are_not_called(announced: str) -> None:
    for gateway in (LOCAL, DISTANT):
        assert direct_address(announced, gateway, NETWORKS) is None


def test_networks_of_public_addresses_can_be_allowed() -> None:
    assert direct_address("8.8.8.8:1", DISTANT, [ip_network("8.8.8.0/24")]) == Address("8.8.8.8", 1)
    everything = [ip_network("0.0.0.0/0"), ip_network("::/0")]
    for never in ("0.0.0.0:1", "169.254.169.254:80", "224.0.0.1:1", "127.0.0.1:1", "[::1]:1"):
        assert direct_address(never, DISTANT, everything) is None


@pytest.mark.parametrize(
    "announced", ["127.0.0.1:9", "127.8.8.8:9", "::1:9", "[::1]:9", "::ffff:127.0.0.1:9"]
)
def test_loopback_counts_behind_a_gateway_on_loopback_only(announced: str) -> None:
    for gateway in (LOCAL, Address("::1", 8080), Address("localhost", 8080)):
        assert direct_address(announced, gateway, ()) is not None
    for gateway in (DISTANT, Address("0.0.0.0", 8080), Address("gateway", 8080)):
        assert direct_address(announced, gateway, NETWORKS) is None


def test_addresses_have_one_spelling() -> None:
    mapped = direct_address("::ffff:127.0.0.1:9", LOCAL, ())
    assert mapped == direct_address("127.0.0.1:9", LOCAL, ())
    assert str(mapped) == "127.0.0.1:9"
    assert str(direct_address("0:0::1:9", LOCAL, ())) == "[::1]:9"


def test_a_function_is_called_directly_once_it_is_known() -> None:
    book = AddressBook()
    assert book.direct("f", 0) is None
    book.learn("f", HERE)
    assert all(book.direct("f", second) == HERE for second in range(1, 10_000))
    assert book.direct("g", 1) is None
    assert book.known() == {HERE}


def test_an_address_is_avoided_for_longer_after_each_failure() -> None:
    book = AddressBook()
    book.learn("f", HERE)
    waits = []
    now = 0.0
    for _ in range(9):
        assert book.direct("f", now) == HERE
        book.avoid(HERE, now)
        start = now
        while book.direct("f", now) is None:
            now += 0.5
            book.learn("f", HERE)
        waits.append(now - start)
    assert waits == [1, 2, 4, 8, 16, 32, *[MAX_AVOID_SECONDS] * 3]


def test_a_silent_address_is_avoided_for_longer_at_first() -> None:
    book = AddressBook()
    book.learn("f", HERE)
    now = 0.0
    for seconds in (*[SILENT_AVOID_SECONDS] * 4, 16):
        book.avoid(HERE, now, silent=True)
        now += seconds
        assert book.direct("f", now - 0.1) is None
        assert book.direct("f", now) == HERE


def test_a_failed_address_is_tried_again_if_the_gateway_knows_no_other() -> None:
    book = AddressBook()
    book.learn("f", HERE)
    book.avoid(HERE, 0)
    assert book.direct("f", 0.5) is None
    assert book.direct("f", 1) == HERE


def test_the_new_address_of_a_function_is_used_at_once() -> None:
    book = AddressBook()
    book.learn("f", HERE)
    book.avoid(HERE, 1)
    book.learn("f", THERE)
    assert book.direct("f", 1) == THERE
    assert book.known() == {THERE}


def test_a_function_without_an_address_of_its_own_is_forgotten() -> None:
    book = AddressBook()
    book.learn("f", HERE)
    book.learn("f", None)
    assert book.direct("f", 1) is None
    assert book.known() == set()


def test_an_address_that_works_again_is_trusted_again() -> None:
    book = AddressBook()
    book.learn("f", HERE)
    for second in (0, 2, 6):
        book.avoid(HERE, second)
    book.confirm(HERE)
    assert book.direct("f", 6) == HERE

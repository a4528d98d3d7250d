"""The address book's choice between a function's own address and its gateway."""

from control_plane.faas.addresses import MAX_AVOID_SECONDS, AddressBook
from control_plane.faas.connection import Address

HERE = Address("10.0.0.5", 8080)
THERE = Address("10.0.0.6", 8080)


def test_a_function_is_called_directly_once_it_is_known() -> None:
    book = AddressBook(gateway_interval=10)
    assert book.direct("f", 0) is None
    book.learn("f", HERE, 0)
    assert book.direct("f", 1) == HERE
    assert book.direct("g", 1) is None
    assert book.known() == {HERE}


def test_one_call_per_interval_goes_through_the_gateway() -> None:
    book = AddressBook(gateway_interval=10)
    book.learn("f", HERE, 0)
    calls = [book.direct("f", second) for second in range(1, 31)]
    assert [second for second, address in enumerate(calls, 1) if address is None] == [10, 20, 30]


def test_an_address_is_avoided_for_longer_after_each_failure() -> None:
    book = AddressBook(gateway_interval=1000)
    waits = []
    now = 0.0
    for _ in range(9):
        while book.direct("f", now) is None:
            now += 0.5
            book.learn("f", HERE, now)
        book.forget("f", now)
        start = now
        while book.direct("f", now) is None:
            now += 0.5
            book.learn("f", HERE, now)
        waits.append(now - start)
    assert waits == [1, 2, 4, 8, 16, 32, *[MAX_AVOID_SECONDS] * 3]


def test_the_new_address_of_a_function_is_used_at_once() -> None:
    book = AddressBook(gateway_interval=10)
    book.learn("f", HERE, 0)
    book.forget("f", 1)
    book.learn("f", THERE, 1)
    assert book.direct("f", 1) == THERE
    assert book.known() == {THERE}


def test_an_address_that_works_again_is_trusted_again() -> None:
    book = AddressBook(gateway_interval=1000)
    for second in (0, 2, 6):
        book.learn("f", HERE, second)
        book.forget("f", second)
    book.confirm(HERE)
    book.learn("f", HERE, 6)
    assert book.direct("f", 6) == HERE

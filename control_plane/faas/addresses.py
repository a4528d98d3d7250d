"""Decides which addresses of functions are called, and when: rows go nowhere else."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from control_plane.faas.connection import Address

MAX_AVOID_SECONDS = 60.0
"""The longest time for which an address is avoided after failures."""
SILENT_AVOID_SECONDS = 8.0
"""The least time for which an address is avoided whose function did not say that it is alive."""

_PORT = re.compile("[1-9][0-9]{0,4}")

Networks = Sequence[IPv4Network | IPv6Network]


def direct_address(announced: str, gateway: Address, networks: Networks) -> Address | None:
    """The address that a function has announced as host:port, or None if it is not to be called.

    It has to be an IP address within `networks`. Loopback counts if the gateway is on loopback: behind one
    on another machine it means that machine, not this one.
    """
    host, _, port = announced.rpartition(":")
    if not _PORT.fullmatch(port) or int(port) > 65535:
        return None
    try:
        ip = _unmapped(ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        return None
    # A link-local address means another machine on each link, and services of a cloud's host.
    if ip.is_unspecified or ip.is_multicast or ip.is_link_local:
        return None
    allowed = gateway.is_loopback if ip.is_loopback else any(ip in network for network in networks)
    return Address(str(ip), int(port)) if allowed else None


def _unmapped(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address such as ::ffff:10.0.0.1 stands for; any other one as it is."""
    return (ip.ipv4_mapped if isinstance(ip, IPv6Address) else None) or ip


@dataclass
class _Failures:
    count: int = 0
    avoid_until: float = 0.0


@dataclass
class AddressBook:
    """The functions' own addresses, learned from their answers. Times are seconds of a monotonic clock."""

    _addresses: dict[str, Address] = field(default_factory=dict)
    _failures: dict[Address, _Failures] = field(default_factory=dict)

    def direct(self, function: str, now: float) -> Address | None:
        """The function's own address, or None if its calls are to go through the gateway."""
        address = self._addresses.get(function)
        failures = self._failures.get(address) if address else None
        return None if failures is not None and now < failures.avoid_until else address

    def known(self) -> set[Address]:
        """The addresses of all functions."""
        return set(self._addresses.values())

    def learn(self, function: str, address: Address | None) -> None:
        """Note the address of a function that has answered through the gateway; None if it has none."""
        if address is None:
            self._addresses.pop(function, None)
        else:
            self._addresses[function] = address
        self._failures = {failed: self._failures[failed] for failed in self._failures.keys() & self.known()}

    def confirm(self, address: Address) -> None:
        """Note that a direct call was answered: earlier failures of the address no longer count."""
        self._failures.pop(address, None)

    def avoid(self, address: Address, now: float, silent: bool = False) -> None:
        """Note that a direct call failed: avoid the address for one second, then two, four and so on.

        One that was `silent` is avoided for longer at first, since another try would take seconds.
        """
        failures = self._failures.setdefault(address, _Failures())
        least = SILENT_AVOID_SECONDS if silent else 0.0
        failures.avoid_until = now + min(max(2.0**failures.count, least), MAX_AVOID_SECONDS)
        failures.count += 1

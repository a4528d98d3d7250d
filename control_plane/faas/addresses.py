"""Decides whether an invocation goes to the function's own address or through the gateway."""

from dataclasses import dataclass, field

from control_plane.faas.connection import Address

MAX_AVOID_SECONDS = 60.0
"""The longest time for which an address is avoided after failures."""


@dataclass
class _Entry:
    address: Address
    through_gateway: float
    """The time at which a call last went through the gateway."""


@dataclass
class _Failures:
    count: int = 0
    avoid_until: float = 0.0


@dataclass
class AddressBook:
    """The functions' own addresses, learned from their answers. Times are seconds of a monotonic clock."""

    gateway_interval: float
    """How often a function's call goes through the gateway, in seconds.

    A gateway does not see direct calls. Without a call from time to time it would take a busy function for
    an idle one, and scale it to zero.
    """
    _entries: dict[str, _Entry] = field(default_factory=dict)
    _failures: dict[Address, _Failures] = field(default_factory=dict)

    def direct(self, function: str, now: float) -> Address | None:
        """The function's own address, or None if the next call is to go through the gateway."""
        entry = self._entries.get(function)
        if entry is None:
            return None
        if now - entry.through_gateway >= self.gateway_interval:
            # Only this one call, even if it fails: the gateway may be away while the function runs.
            entry.through_gateway = now
            return None
        return entry.address

    def last_known(self, function: str) -> Address | None:
        """The function's own address at its last answer, whether or not a gateway call is due."""
        entry = self._entries.get(function)
        return entry.address if entry else None

    def known(self) -> set[Address]:
        """The addresses of all functions that are called directly."""
        return {entry.address for entry in self._entries.values()}

    def learn(self, function: str, address: Address, now: float) -> None:
        """Note that a call through the gateway was answered by a function at this address."""
        failures = self._failures.get(address)
        avoided = failures is not None and now < failures.avoid_until
        if not avoided:
            self._entries[function] = _Entry(address, now)

    def confirm(self, address: Address) -> None:
        """Note that a direct call was answered: earlier failures of the address no longer count."""
        self._failures.pop(address, None)

    def forget(self, function: str, now: float) -> None:
        """Note that a direct call failed: avoid its address for one second, then two, four and so on."""
        entry = self._entries.pop(function, None)
        if entry is not None:
            failures = self._failures.setdefault(entry.address, _Failures())
            failures.avoid_until = now + min(2.0**failures.count, MAX_AVOID_SECONDS)
            failures.count += 1

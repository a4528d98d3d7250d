"""Which functions can be called at their own address, and when a call takes the gateway all the same."""

from dataclasses import dataclass, field

from control_plane.faas.connection import Address

MAX_AVOID_SECONDS = 60.0


@dataclass
class _Entry:
    address: Address
    through_gateway: float
    """When a call last went through the gateway."""


@dataclass
class _Failures:
    count: int = 0
    avoid_until: float = 0.0


@dataclass
class AddressBook:
    """What answers have told of functions' addresses. Times are of one monotonic clock, in seconds."""

    gateway_interval: float
    """A gateway sees no direct call, and would take a busy function for an idle one: one call in this time
    goes through it."""
    _entries: dict[str, _Entry] = field(default_factory=dict)
    _failures: dict[Address, _Failures] = field(default_factory=dict)

    def direct(self, function: str, now: float) -> Address | None:
        """The function's own address, or None when the next call is the gateway's."""
        entry = self._entries.get(function)
        if entry is None:
            return None
        if now - entry.through_gateway >= self.gateway_interval:
            # Whatever becomes of that call, the one after it is direct: it may be the gateway that is away.
            entry.through_gateway = now
            return None
        return entry.address

    def awake(self, function: str) -> Address | None:
        """Where the function was when it last answered, for what is worth no detour."""
        entry = self._entries.get(function)
        return entry.address if entry else None

    def known(self) -> set[Address]:
        """All addresses that calls may go to."""
        return {entry.address for entry in self._entries.values()}

    def learn(self, function: str, address: Address, now: float) -> None:
        """A call through the gateway was answered, by a function at this address."""
        failures = self._failures.get(address)
        avoided = failures is not None and now < failures.avoid_until
        if not avoided:
            self._entries[function] = _Entry(address, now)

    def confirm(self, address: Address) -> None:
        """A direct call was answered."""
        self._failures.pop(address, None)

    def forget(self, function: str, now: float) -> None:
        """A direct call failed: its address is avoided for a second, then for two, four and so on."""
        entry = self._entries.pop(function, None)
        if entry is not None:
            failures = self._failures.setdefault(entry.address, _Failures())
            failures.avoid_until = now + min(2.0**failures.count, MAX_AVOID_SECONDS)
            failures.count += 1

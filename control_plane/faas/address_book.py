"""Which functions can be called at their own address, and when a call takes the gateway all the same."""

from dataclasses import dataclass, field

from control_plane.faas.connection import Address


@dataclass
class _Entry:
    address: Address
    through_gateway: float
    """When a call last went through the gateway."""


@dataclass
class AddressBook:
    """What answers have told of functions' addresses. Times are of one monotonic clock, in seconds."""

    gateway_interval: float
    """A gateway sees no direct call, and would take a busy function for an idle one: one call in this time
    goes through it. An address that cannot be reached is left alone for as long."""
    _entries: dict[str, _Entry] = field(default_factory=dict)
    _unreachable: dict[Address, float] = field(default_factory=dict)

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

    def learn(self, function: str, address: Address, now: float) -> None:
        """A call through the gateway was answered, by a function at this address."""
        if self._unreachable.get(address, now) <= now:
            self._unreachable.pop(address, None)
            self._entries[function] = _Entry(address, now)

    def forget(self, function: str) -> None:
        """A direct call failed."""
        self._entries.pop(function, None)

    def avoid(self, address: Address, now: float) -> None:
        """The address did not even refuse, as behind a router that drops: each try would cost that wait."""
        self._unreachable[address] = now + self.gateway_interval

"""When what happened to one request."""

import time
from dataclasses import dataclass, field


@dataclass
class Timing:
    """Seconds of time.monotonic(), and what follows from them."""

    arrived: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    inter_token_latencies: list[float] = field(default_factory=list)
    _last_tokens: dict[int, float] = field(default_factory=dict)

    def token(self, choice: int) -> None:
        """A token of that choice has come."""
        now = time.monotonic()
        if self.first_token is None:
            self.first_token = now
        if choice in self._last_tokens:
            self.inter_token_latencies.append(now - self._last_tokens[choice])
        self._last_tokens[choice] = now

    @property
    def time_to_first_token(self) -> float | None:
        """None while there is none."""
        return None if self.first_token is None else self.first_token - self.arrived

    @property
    def seconds(self) -> float:
        """Since the request arrived."""
        return time.monotonic() - self.arrived

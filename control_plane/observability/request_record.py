"""The summary of a request that has ended, for metrics, logs and the ledger."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RequestRecord:
    """A request that has ended, with or without an error. Times are in seconds."""

    tenant: str
    request_id: str
    path: str
    status: int
    """The HTTP status of the response, or of the error that ended a stream."""
    finish_reasons: tuple[str, ...]
    """One for each choice that was answered in full."""
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that were there from earlier requests."""
    generated_tokens: int
    queue_seconds: float | None
    """Seconds from submission to the first step; None if the request never ran."""
    time_to_first_token: float | None
    """Seconds from arrival to the first token; None if there was none."""
    inter_token_latencies: Sequence[float]
    seconds: float
    """Seconds from arrival to the end of the request."""
    expert_invocations: float
    """The request's share, by rows, of the invocations that it took part in."""
    expert_seconds: float
    """The request's share, by rows, of the functions' compute time."""

    @property
    def succeeded(self) -> bool:
        """Whether the request was answered in full."""
        return self.status < 400

"""Files and batches, with their forms on disk and in OpenAI's API. Times are Unix times in seconds."""

from typing import Any, Literal

from msgspec import Struct, field, to_builtins

Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
Purpose = Literal["batch", "batch_output"]
OPEN: tuple[Status, ...] = ("validating", "in_progress", "finalizing", "cancelling")
"""The states of a batch that has not ended."""


class FileRecord(Struct, forbid_unknown_fields=True):
    """A file of a tenant."""

    id: str
    tenant: str
    filename: str
    purpose: Purpose
    nbytes: int
    created: int
    expires: int

    def body(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.nbytes,
            "created_at": self.created,
            "expires_at": self.expires,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


class LineError(Struct, forbid_unknown_fields=True):
    """Why a batch failed; `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchRecord(Struct, forbid_unknown_fields=True):
    """A batch of a tenant. Its answers are in two files, line by line."""

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    output_id: str
    """The id of the file with answers, once the batch has ended. `error_id` is that of failed lines."""
    error_id: str
    created: int
    expires: int
    """End of the window. Lines that are not done by then are left out."""
    metadata: dict[str, str] | None = None
    status: Status = "validating"
    times: dict[str, int] = field(default_factory=dict)
    """The time at which the batch entered each state."""
    errors: list[LineError] = field(default_factory=list)
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether the batch has not ended."""
        return self.status in OPEN

    def enter(self, status: Status, now: int) -> None:
        """Change the state, and record the time."""
        self.status = status
        self.times[status] = now

    def body(self, model: str) -> dict[str, Any]:
        """OpenAI's batch object."""
        states = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": model,
            "errors": {"object": "list", "data": to_builtins(self.errors)} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created,
            "expires_at": self.expires,
            **{f"{state}_at": self.times.get(state) for state in states},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.metadata,
        }

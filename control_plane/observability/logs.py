"""Structured logs: one JSON object a line, on standard error.

What is logged is data of a field, never part of the line: no text can begin a line of its own.
"""

import logging
import sys
from typing import TYPE_CHECKING

from pythonjsonlogger.json import JsonFormatter

if TYPE_CHECKING:
    # The gateway logs, too, and has no need of torch, which that module brings in.
    from control_plane.observability.metrics import RequestRecord

_logger = logging.getLogger(__name__)


def configure(level: str) -> None:
    """Log this program's events of a level (of `config.LOG_LEVELS`) and above, and its libraries' warnings.

    At `debug` the libraries tell everything, too. In place of what was configured before.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(
            "%(levelname)s %(name)s %(message)s",
            timestamp="time",
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
        )
    )
    libraries = level.upper() if level in ("debug", "error") else "WARNING"
    logging.basicConfig(level=libraries, handlers=[handler], force=True)
    logging.getLogger("control_plane").setLevel(level.upper())
    logging.captureWarnings(True)


def log_request(record: "RequestRecord", prompt: str | None) -> None:
    """Log one request that has ended; what was asked only when `prompt` is given. Times in milliseconds."""
    fields: dict[str, object] = {
        "request_id": record.request_id,
        "tenant": record.tenant,
        "path": record.path,
        "status": record.status,
        "finish_reasons": record.finish_reasons,
        "prompt_tokens": record.prompt_tokens,
        "generated_tokens": record.generated_tokens,
        "queue_ms": _milliseconds(record.queue_seconds),
        "ttft_ms": _milliseconds(record.time_to_first_token),
        "duration_ms": _milliseconds(record.seconds),
        "expert_invocations": round(record.expert_invocations, 3),
        "expert_ms": _milliseconds(record.expert_seconds),
    }
    if prompt is not None:
        fields["prompt"] = prompt
    _logger.info("request ended", extra=fields)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)

"""Structured logs on standard error: one JSON object per line.

Variable data goes into fields, so no text from outside can start a new line.
"""

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

from control_plane.observability.request_record import RequestRecord

_logger = logging.getLogger(__name__)


def configure(level: str) -> None:
    """Log the program's events from `level` (one of `config.LOG_LEVELS`) up, and warnings of its libraries.

    At `debug`, log all events of the libraries, too. This replaces any earlier configuration.
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


def log_request(record: RequestRecord, prompt: str | None) -> None:
    """Log a request that has ended, with its prompt if given. Times in milliseconds."""
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


def log_kernel(name: str) -> None:
    """Log the name of the control plane's kernel, as a warning if it is NumPy's."""
    if name == "numpy":
        _logger.warning("computing with NumPy, which is many times slower than with the code in C")
    else:
        _logger.info("computing with the %s kernel", name)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)

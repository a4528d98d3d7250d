"""Parses amounts with units: bytes ("6GB", "512MiB") and durations ("60s", "1h30m")."""

import re
from decimal import Decimal

from control_plane.errors import ConfigError

_BYTES = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", 1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)},
}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

_AMOUNT = re.compile(r"(\d{1,18}(?:\.\d{1,9})?) ?([A-Za-z]*)", re.ASCII)
_NUMBER = re.compile(r"\d{1,9}(?:\.\d{1,9})?", re.ASCII)
_DURATION_PART = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h)", re.ASCII)

DURATION = "a duration such as 90s or 15m"
"""What errors say that they expect."""
BYTES = "bytes, such as 6GB, 512MiB or 6000000000"


def parse_bytes(text: str) -> int:
    """Parse "6GB" (10^9 bytes each), "6GiB" (2^30), "500MB" or "6000000000". Raises `ConfigError`."""
    match = _AMOUNT.fullmatch(text.strip())
    factor = _BYTES.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ConfigError(f"expected {BYTES}, got {text!r}")
    return int(Decimal(match[1]) * factor)


def parse_duration(text: str) -> float:
    """Parse a duration above zero in Go's notation ("90s", "1h30m") to seconds. Raises `ConfigError`."""
    if not (seconds := _go_duration(text)):
        raise ConfigError(f"expected {DURATION}, got {text!r}")
    return seconds


def parse_seconds(text: str) -> float:
    """Parse a duration in Go's notation, or a plain number of seconds ("60"). Raises `ConfigError`."""
    text = text.strip()
    seconds = float(text) if _NUMBER.fullmatch(text) else _go_duration(text)
    if seconds is None:
        raise ConfigError(f"expected {DURATION}, got {text!r}")
    return seconds


def _go_duration(text: str) -> float | None:
    """A duration's seconds; None for other texts."""
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(amount + unit for amount, unit in parts) != text:
        return None
    return sum(float(amount) * _SECONDS[unit] for amount, unit in parts)

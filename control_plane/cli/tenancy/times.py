"""Times on the command line: as options, a duration before or after now, or a date; and as output."""

import re
import time
from datetime import UTC, datetime

import click

from control_plane.tenancy.periods import SECONDS_PER_DAY, day_of, month_of

_UNIT_SECONDS = {"m": 60, "h": 3600, "d": SECONDS_PER_DAY}
_DURATION = re.compile(r"([0-9]{1,9})([mhd])")


class Since(click.ParamType[float]):
    """An age such as 30m, 24h or 7d, `today`, `month`, or an ISO 8601 date or time.

    The value is Unix time, in seconds.
    """

    name = "AGE|DATE"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        now = time.time()
        if value in ("today", "month"):
            return float((day_of(now) if value == "today" else month_of(now)[0]) * SECONDS_PER_DAY)
        if (age := _seconds(value)) is not None:
            return max(0.0, now - age)
        if (date := _date(value)) is not None:
            return max(0.0, date)
        return self.fail(f"{value!r} is neither an age such as 30m, 24h or 7d, nor a date", param, ctx)


class Expiry(click.ParamType[float]):
    """A time in the future: a duration such as 12h or 30d, or an ISO 8601 date or time.

    The value is Unix time, in seconds.
    """

    name = "DURATION|DATE"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        now = time.time()
        duration = _seconds(value)
        expires = _date(value) if duration is None else now + duration
        if expires is None:
            self.fail(f"{value!r} is neither a duration such as 12h or 30d, nor a date", param, ctx)
        if expires <= now:
            self.fail(f"{value!r} is over", param, ctx)
        return expires


def local_time(at: float) -> str:
    """A Unix time in the local time zone, for people."""
    return f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M}"


def utc_time(at: float) -> str:
    """A Unix time in UTC and in ISO 8601, for programs."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _seconds(text: str) -> float | None:
    found = _DURATION.fullmatch(text)
    return int(found[1]) * _UNIT_SECONDS[found[2]] if found else None


def _date(text: str) -> float | None:
    """The Unix time of a date or time, which is local unless it says otherwise."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None

"""The days and months of budgets, in UTC. Times are Unix times, in seconds."""

from datetime import UTC, datetime, timedelta

SECONDS_PER_DAY = 86_400


def day_of(at: float) -> int:
    """The number of a time's day, counted from 1970."""
    return int(at // SECONDS_PER_DAY)


def month_of(at: float) -> tuple[int, int]:
    """The numbers of the first day of a time's month, and of the next month."""
    first = datetime.fromtimestamp(at, UTC).replace(day=1)
    # The 32nd day of a month is in the next one.
    following = (first + timedelta(days=31)).replace(day=1)
    return day_of(first.timestamp()), day_of(following.timestamp())

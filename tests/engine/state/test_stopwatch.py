"""Each lap charges its time to one part."""

from collections.abc import Iterator
from itertools import accumulate

from control_plane.engine.state.stopwatch import StepPart, Stopwatch


def ticks(*seconds: float) -> Iterator[float]:
    """Readings of a clock, with these seconds between them."""
    return accumulate(seconds)


def test_time_is_charged_to_the_part_that_ends() -> None:
    clock = ticks(100, 1, 2, 4, 8)
    stopwatch = Stopwatch(clock=lambda: next(clock))
    stopwatch.start()
    stopwatch.lap(StepPart.DENSE)
    stopwatch.lap(StepPart.WAIT)
    stopwatch.lap(StepPart.DENSE)
    stopwatch.lap(StepPart.SCHEDULE)
    spent = {part: seconds for part, seconds in stopwatch.seconds.items() if seconds}
    assert spent == {StepPart.DENSE: 5, StepPart.WAIT: 2, StepPart.SCHEDULE: 8}


def test_time_without_work_is_not_charged() -> None:
    clock = ticks(0, 1, 1000, 2)
    stopwatch = Stopwatch(clock=lambda: next(clock))
    stopwatch.start()
    stopwatch.lap(StepPart.DENSE)
    stopwatch.start()
    stopwatch.lap(StepPart.DENSE)
    assert sum(stopwatch.seconds.values()) == 3

"""What is counted of a function's weights goes on over the processes that it has, one after the other."""

import numpy as np

from control_plane.faas.statistics import FunctionStatistics, ResidencyHistory
from functions.contract.messages import InvocationResult, ResidencyReport


def answer(instance: str, **report: int) -> InvocationResult:
    output = np.zeros((1, 4), np.float32)
    return InvocationResult(output, instance, "127.0.0.1:1", 0.1, 0, ResidencyReport(**report))


def test_a_new_process_begins_again_and_what_is_counted_goes_on() -> None:
    counted = FunctionStatistics()
    seen = []
    for result in (
        answer("one", read_bytes=100, evicted_for_room=1, resident_experts=3),
        answer("one", read_bytes=250, evicted_for_room=1, resident_experts=4),
        answer("two", read_bytes=50, resident_experts=1),
        answer("two", read_bytes=70, evicted_for_room=2, resident_experts=2),
        answer("three"),
    ):
        counted.record(0, 1, 1, result)
        totals = counted.residency.totals
        seen.append((totals.read_bytes, totals.evicted_for_room, totals.resident_experts))
    assert seen == [(100, 1, 3), (250, 1, 4), (300, 1, 1), (320, 3, 2), (320, 3, 0)]
    assert counted.cold_starts == 3


def test_a_report_beside_the_invocations_counts_unless_it_is_older() -> None:
    history = ResidencyHistory().after(ResidencyReport(read_bytes=100, resident_experts=3), new_process=True)
    newer = ResidencyReport(read_bytes=100, evicted_for_limit=3, limit_bytes=7)
    assert history.beside(newer).totals == newer
    assert history.beside(ResidencyReport(read_bytes=90)) == history

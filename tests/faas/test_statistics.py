"""The statistics of a function's weights span its successive processes."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import numpy as np

from control_plane.faas.statistics import FunctionStatistics, ResidencyHistory
from functions.contract.messages import InvocationResult, ResidencyReport


def answer(instance: str, **report: int) -> InvocationResult:
    output = np.zeros((1, 4), np.float32)
    return InvocationResult(output, instance, "127.0.0.1:1", 0.1, 0, ResidencyReport(**report))


def test_counts_add_up_over_restarts_of_the_process() -> None:
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


def test_an_answer_without_a_report_leaves_the_last_one() -> None:
    counted = FunctionStatistics()
    silent = replace(answer("one"), residency=None)
    counted.record(0, 1, 1, answer("one", read_bytes=100, resident_experts=3))
    counted.record(0, 1, 1, silent)
    assert counted.residency.last == ResidencyReport(read_bytes=100, resident_experts=3)
    counted.residency.observe(ResidencyReport(read_bytes=100, limit_bytes=7))
    counted.record(0, 1, 1, silent)
    assert counted.residency.last.limit_bytes == 7
    counted.record(0, 1, 1, replace(silent, instance="two"))
    assert (counted.residency.last, counted.residency.totals.read_bytes) == (ResidencyReport(), 100)
    assert (counted.invocations, counted.cold_starts) == (4, 2)


def test_a_report_without_an_invocation_counts_unless_it_is_older() -> None:
    history = ResidencyHistory().after(ResidencyReport(read_bytes=100, resident_experts=3), new_process=True)
    newer = ResidencyReport(read_bytes=100, evicted_for_limit=3, limit_bytes=7)
    assert history.observed(newer).totals == newer
    assert history.observed(ResidencyReport(read_bytes=90)) == history


def test_an_observed_report_holds_until_the_next_invocation() -> None:
    counted = FunctionStatistics()
    counted.record(0, 1, 1, answer("one", read_bytes=100, resident_experts=3))
    counted.residency.observe(ResidencyReport(read_bytes=100, evicted_for_limit=2, resident_experts=1))
    assert counted.residency.last.resident_experts == 1
    counted.residency.observe(ResidencyReport(read_bytes=100, evicted_for_limit=3))
    counted.residency.observe(ResidencyReport(read_bytes=100, evicted_for_limit=1))
    assert counted.residency.totals.evicted_for_limit == 3
    counted.record(0, 1, 1, answer("two", read_bytes=10, resident_experts=2))
    assert counted.residency.last.resident_experts == 2
    totals = counted.residency.totals
    assert (totals.read_bytes, totals.evicted_for_limit) == (110, 3)


def test_reports_from_two_threads_lose_no_invocation() -> None:
    counted = FunctionStatistics()
    ended = Event()

    def observe() -> None:
        while not ended.is_set():
            counted.residency.observe(ResidencyReport())

    with ThreadPoolExecutor(1) as pool:
        observing = pool.submit(observe)
        for process in range(2000):
            counted.record(0, 1, 1, answer(str(process), read_bytes=1))
        ended.set()
        observing.result()
    assert counted.residency.totals.read_bytes == 2000

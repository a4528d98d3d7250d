"""What counts as lost, unbooked or growing: pure decisions of the chaos test and the soak."""

from bench.robustness.growth import FILES, MEMORY, Series, lines
from bench.robustness.results import Account, ChaosResult, FaultResult, examples
from bench.robustness.streams import Attempt, Ending, Stall


def attempt(ending: Ending, tokens: int = 0, wrong: int = 0, sent: bool = True) -> Attempt:
    return Attempt("acme", 1.0, ending, tokens, wrong, sent, problem=ending.value)


ATTEMPTS = [
    attempt(Ending.COMPLETED, 10),
    attempt(Ending.COMPLETED, 10, wrong=2),
    attempt(Ending.REFUSED),
    attempt(Ending.REFUSED, sent=False),
    attempt(Ending.CUT, 4),
    attempt(Ending.LOST, 3),
]


def test_a_fault_counts_its_attempts_and_its_longest_stall() -> None:
    fault = FaultResult("x")
    assert fault.held
    fault.add(ATTEMPTS, [Stall(1.0, 3.5), Stall(2.0, 3.0)])
    assert (fault.wrong_tokens, fault.lost, fault.cut, fault.refused, fault.stall) == (2, 1, 1, 2, 2.5)
    assert not fault.held
    assert FaultResult("x", cut=3, refused=9, stall=70.0).held
    assert not FaultResult("x", processes_left=1).held
    assert not FaultResult("x", failures=["no recovery"]).held
    assert examples(ATTEMPTS) == ["lost"]


def test_bookings_are_right_between_what_was_completed_and_what_was_sent() -> None:
    def account(requests: int, tokens: int) -> Account:
        return Account.of("acme", ATTEMPTS, {"requests": requests, "generated_tokens": tokens}, 10)

    assert account(2, 20).uncertain == 3
    assert account(2, 20).held
    assert account(5, 50).held
    assert (account(1, 20).unbooked, account(1, 20).held) == (1, False)
    assert (account(2, 19).unbooked, account(2, 19).held) == (1, False)
    assert (account(6, 50).overbooked, account(6, 50).held) == (1, False)
    assert (account(5, 51).overbooked, account(5, 51).held) == (1, False)
    # Refused requests were booked, and completed ones were not.
    assert account(5, 3).unbooked == 2
    assert Account.of("acme", ATTEMPTS, {}, 10).unbooked == 2
    assert Account.of("other", ATTEMPTS, {}, 10).held


def test_a_run_is_held_only_if_nothing_is_left() -> None:
    def run(processes: int = 0, connections: int = 0, lost: int = 0) -> ChaosResult:
        faults = [FaultResult("no fault"), FaultResult("x", lost=lost)]
        return ChaosResult(1.0, 7, faults, [], processes, connections, [])

    assert run().held
    assert list(run().lines())[-1] == "HELD in 1 s with seed 7"
    assert not any(each.held for each in (run(processes=1), run(connections=1), run(lost=1)))
    assert run(lost=1).to_json()["held"] is False


def test_growth_is_measured_after_the_warm_up_without_single_peaks() -> None:
    warm = [(float(second), 100.0 + max(0, 30 - second)) for second in range(90)]
    assert Series("p", MEMORY, warm).flat
    peaks = [(second, amount + 50 * (second % 30 == 0)) for second, amount in warm]
    assert Series("p", MEMORY, peaks).slope == 0.0
    leak = Series("p", MEMORY, [(second, 100 + second / 3600 * 11) for second, _ in warm])
    assert round(leak.slope, 3) == 11.0
    assert not leak.flat
    assert Series("p", FILES, [(0.0, 5.0)]).flat
    assert [round(leak.around(share), 2) for share in (0.0, 0.5, 1.0)] == [100.01, 100.13, 100.26]
    assert list(lines([leak]))[1].split()[-1] == "NO"

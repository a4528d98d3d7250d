"""What counts as lost, unbooked or left over."""

from bench.robustness.chaos.results import Account, ChaosResult, FaultResult, examples
from bench.robustness.chaos.streams import Attempt, Ending, Stall


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

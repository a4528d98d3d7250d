"""The rows that `make bench-families` prints."""

from bench.memory_limit.scenarios import FAASMOE, SEQUENCES, Scenario
from bench.peers.families import HEADER, Family
from tests.support.models.tiny_partition import TinyPartition


def test_a_failure_with_several_sequences_is_in_the_row(tiny: TinyPartition) -> None:
    result = Scenario(FAASMOE, "8GB", SEQUENCES).result(SEQUENCES[0], decode=2.0, start_seconds=3.0)
    cells = Family("tiny", tiny.folder, results=[result], problem="it ended").cells()
    assert dict(zip(HEADER, cells, strict=False))["decode, 6 at once"] == "-"
    assert cells[len(HEADER) :] == ["it ended"]

"""Measures FaaSMoE for `make bench-peers`: a partition, served by real processes and asked over HTTP."""

from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from bench.memory_limit.faasmoe import LONG_PROMPT, SHORT_PROMPT, DecodeLoad, LimitedFaaSMoE
from bench.memory_limit.results import Machine
from bench.memory_limit.scenarios import FAASMOE, NO_LIMIT, SEQUENCES_WITHOUT_LIMIT, Scenario
from bench.memory_limit.step_weights import StepWeights
from bench.peers.table import Speed, Speeds, decode_row, prefill_row


@dataclass(frozen=True)
class FaaSMoE:
    """A partition, and what a step of its model reads."""

    partition: Path
    weights: StepWeights
    output_tokens: int
    """Tokens of each answer."""

    @property
    def title(self) -> str:
        """The column of the table."""
        return f"FaaSMoE {self.partition.name}"

    async def speeds(self, limit: str, machine: Machine) -> Speeds:
        """One round: all rows under the limit. Raises `FaaSMoEError`, or a group of the requests' errors."""
        # The most sequences come first: their prompts bring the experts into memory.
        sequences = SEQUENCES_WITHOUT_LIMIT[::-1] if limit == NO_LIMIT else (1,)
        served = LimitedFaaSMoE(self.partition, Scenario(FAASMOE, limit, sequences))
        speeds: dict[str, Speed | None] = {}
        async with aclosing(
            served.measure(DecodeLoad(1, self.output_tokens), self.weights, machine)
        ) as results:
            async for result in results:
                alone = result.sequences == 1
                # How many experts several sequences share is not known.
                share = result.share_of_limit if alone else None
                speeds[decode_row(result.sequences, limit)] = _speed(result.decode, share)
                if alone and limit == NO_LIMIT:
                    speeds[prefill_row(SHORT_PROMPT)] = _speed(result.prefill_short)
                    speeds[prefill_row(LONG_PROMPT)] = _speed(result.prefill_long)
        return {row: speed for row, speed in speeds.items() if speed}


def _speed(value: float | None, share: float | None = None) -> Speed | None:
    return None if value is None else Speed(value, share)

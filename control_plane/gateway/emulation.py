"""In what the embedded gateway can behave as another one does, to rehearse on loopback what awaits there."""

from dataclasses import dataclass

from control_plane.partition.granularity import COMMUNITY_FUNCTIONS


@dataclass(frozen=True)
class EmulatedBehaviour:
    """What callers notice of a gateway."""

    provider: str = "faasmoe"
    orchestration: str = "processes"
    max_functions: int | None = None
    scales_to_zero: bool = True
    waits_for_start: bool = True
    """Whether a call of a function that is starting waits for that; else its answer is 500."""
    passes_length: bool = True
    """Whether functions are told a body's length; else it comes in chunks."""
    keep_alive_seconds: float = 15.0
    """For how long a connection to a function is kept for the next call."""


OWN = EmulatedBehaviour()
FAASD = EmulatedBehaviour(
    provider="faasd-ce",
    orchestration="containerd",
    max_functions=COMMUNITY_FUNCTIONS,
    scales_to_zero=False,
    waits_for_start=False,
    passes_length=False,
    keep_alive_seconds=0.12,
)
"""The community edition's, as measured and as in `pkg/provider/handlers` of https://github.com/openfaas/faasd."""
EMULATED = {"faasd": FAASD}
"""By name."""

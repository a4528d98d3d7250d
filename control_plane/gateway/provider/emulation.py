"""Behaviour of other gateways that the embedded gateway can emulate, to test against it on loopback."""

from dataclasses import dataclass

from control_plane.partition.granularity import COMMUNITY_FUNCTIONS


@dataclass(frozen=True)
class EmulatedBehaviour:
    """The properties of a gateway that its callers notice."""

    provider: str = "faasmoe"
    orchestration: str = "processes"
    max_functions: int | None = None
    scales_to_zero: bool = True
    waits_for_start: bool = True
    """Whether a call waits while its function starts; otherwise it is answered with 500."""
    passes_length: bool = True
    """Whether functions get bodies with a Content-Length; otherwise bodies are chunked."""
    keep_alive_seconds: float = 15.0
    """Seconds for which an idle connection to a function is kept open."""


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
"""faasd's community edition: measured, and read from pkg/provider/handlers in https://github.com/openfaas/faasd."""
EMULATED = {"faasd": FAASD}
"""The gateways that `--emulate` accepts, by name."""

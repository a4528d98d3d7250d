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
    """Whether functions may have zero replicas; otherwise a request for zero is accepted without effect."""
    lists_available: bool = True
    """Whether the list of functions says how many replicas are available, and what they use."""
    vanishes: bool = False
    """Whether a function that is removed or replaced leaves its callers without an answer or a reset."""
    ignored_sigterm_seconds: float | None = None
    """How long it takes until a removal fails if the function has no handler for SIGTERM yet; None if it does
    not fail."""
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
    lists_available=False,
    vanishes=True,
    ignored_sigterm_seconds=30.0,
    waits_for_start=False,
    passes_length=False,
    keep_alive_seconds=0.12,
)
"""faasd with the limit of its community edition: measured with the MIT build of September 2024, and read from
pkg/provider/handlers in https://github.com/openfaas/faasd. The community edition itself answers 400 to zero
replicas."""
EMULATED = {"faasd": FAASD}
"""The gateways that `--emulate` accepts, by name."""

"""Lets the C extension answer a function's plain calls, if there is one that can."""

import numpy as np

from functions.expert.authentication import Authentication
from functions.expert.eviction import LEAST, ROWS
from functions.expert.expert_block import ExpertBlock
from functions.expert.expert_function import ExpertFunction
from functions.fast_path.shared import Condition, ProofsState, condition, fast_path_type
from functions.http.connections import Connections
from functions.http.server import FastPath
from functions.kernels.gated_ffn import CGatedFFN

MAX_FAST_BODY_NBYTES = 1 << 20
"""Calls with larger bodies take much longer to compute than Python takes to read them."""
REPORT_SECONDS = 1.0
"""Calls in C send no report; after so long, Python answers one, with the memory that the process has now."""


def fast_path(function: ExpertFunction, block: ExpertBlock, connections: Connections) -> FastPath | None:
    """Answers plain calls of the block; None without the extension, or when NumPy computes."""
    fast_path_of = fast_path_type()
    if fast_path_of is None or not isinstance(block.kernel, CGatedFFN):
        return None
    residency, manifest, uses = block.residency, block.manifest, block.residency.next_use
    layers = sorted(block.positions)
    return fast_path_of(
        block.kernel.name,
        block.shape.as_arguments(),
        manifest.dtype,
        block.threads,
        manifest.num_experts_per_tok,
        manifest.fingerprint,
        function.instance,
        MAX_FAST_BODY_NBYTES,
        REPORT_SECONDS,
        residency.weights,
        np.array(layers, np.int64),
        np.stack([block.positions[layer] for layer in layers]),
        (function.changed, function.state),
        _proofs(function.authentication),
        (connections.changed, connections.state),
        (residency.changed, residency.state, residency.ready, residency.held),
        (uses.state, uses.uses, uses.rounds, uses.last_used, uses.kept, uses.bounds, ROWS, LEAST),
    )


def _proofs(authentication: Authentication | None) -> tuple[Condition, ProofsState]:
    return (authentication.changed, authentication.state) if authentication else (condition(), ProofsState())

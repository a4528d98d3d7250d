"""The faults of the chaos test, by name."""

import random
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from bench.robustness.chaos import file_faults, process_faults
from bench.robustness.stack import Stack

Inject = Callable[[Stack, random.Random], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    name: str
    inject: Inject
    hold: float = 0.0
    """Seconds between injecting and ending it."""
    aim: float = 3.0
    """The longest stall that is aimed at, in seconds. Where nothing can be served meanwhile, `hold` adds."""


def _listed(*faults: Fault) -> Mapping[str, Fault]:
    return {fault.name: fault for fault in faults}


FAULTS = _listed(
    Fault("function-killed", process_faults.kill_function),
    Fault("function-paused", process_faults.pause_function, hold=10.0, aim=5.0),
    Fault("function-hung", process_faults.hang_function, aim=5.0),
    Fault("function-redeployed", process_faults.redeploy_function),
    Fault("function-removed", process_faults.remove_function),
    Fault("function-starved", process_faults.starve_function, hold=6.0, aim=9.0),
    Fault("gateway-killed", process_faults.kill_gateway),
    Fault("gateway-hung", process_faults.hang_gateway, hold=10.0),
    Fault("control-plane-killed", process_faults.kill_control_plane),
    Fault("database-locked", file_faults.lock_database, hold=20.0),
    Fault("database-full", file_faults.fill_database, hold=10.0),
    Fault("database-replaced", file_faults.replace_database),
    Fault("block-touched", file_faults.touch_block),
    Fault("bit-flipped", file_faults.flip_bit, hold=6.0, aim=9.0),
)
"""All faults by name."""

"""Small results of a comparison, from which a test can compute the expected figures."""

from bench.comparison.measuring.recording import FunctionCalls, RunDescription, StrategyResult
from bench.comparison.measuring.replay import RequestOutcome
from bench.comparison.measuring.resources import Moment

RUN = RunDescription(
    workload="2 rounds",
    model="random weights",
    num_requests=2,
    tenants=["tenant-1", "tenant-2"],
    settings={"seed": 0, "experts_per_function": []},
    dense_bytes=1_000_000_000,
    experts_bytes=2_000_000_000,
    num_experts=60,
    moe_layers=8,
    machine={"cores": 2},
    versions={"commit": "abc"},
    began="2026-11-25T10:00:00+00:00",
)


def moment(seconds: float, cpu: float, gigabytes: float, functions: int = 0, started: int = 0) -> Moment:
    """A sample of one control plane and some functions of 0.5 GB each."""
    return Moment(
        seconds,
        {"control plane": cpu},
        {"control plane": int(gigabytes * 1e9), "function": int(functions * 0.5e9)},
        {"control plane": 1, "function": functions},
        {"function": started},
    )


def outcome(tenant: str, tokens: list[float], error: str = "") -> RequestOutcome:
    """A request that was due at 1 s and sent 10 ms later, with the times of its tokens in seconds."""
    return RequestOutcome(tenant, 0, 1.0, 1.01, 30, 4, tokens, max([*tokens, 1.5]), error)


def measured(
    strategy: str,
    *,
    gigabytes: float = 4.0,
    cpu: float = 6.0,
    functions: int = 0,
    size: int | None = None,
    problem: str = "",
) -> StrategyResult:
    """A strategy's result: six tokens for two tenants within four seconds, with constant memory."""
    if problem:
        return StrategyResult(strategy, strategy.title(), size, problem=problem, needs_bytes=30_000_000_000)
    return StrategyResult(
        strategy,
        strategy.title(),
        size,
        functions=8,
        needs_bytes=5_000_000_000,
        ready_seconds=7.5,
        shortfall=0.01,
        outcomes=[
            outcome("tenant-1", [1.5, 1.6, 1.7, 1.9]),
            outcome("tenant-2", [2.0, 5.0], error="cut off"),
        ],
        moments=[
            moment(0.0, 1.0, gigabytes, functions),
            moment(4.0, 1.0 + cpu, gigabytes, functions, started=functions),
        ],
        idle=[moment(10.0, 7.0, 0.5), moment(12.0, 7.0, 0.5)],
        calls=FunctionCalls(60, 240, 2.0, 5e5, 1e5, 3) if functions else None,
        cached_bytes=100_000_000,
    )

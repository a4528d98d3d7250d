"""Routes an expert function's requests: invocations (`POST /`), health, readiness, metrics and residency."""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field

from functions.contract.messages import Invocation, InvocationResult, ResidencyReport
from functions.contract.process import HEALTH_PATH, METRICS_PATH, READY_PATH, RESIDENCY_PATH
from functions.contract.safetensors_codec import CONTENT_TYPE, WireError
from functions.contract.secret import UNAUTHORIZED
from functions.expert.authentication import Authentication
from functions.expert.expert_block import ExpertBlock, InvocationRefused
from functions.fast_path.shared import Condition, FunctionState, condition
from functions.http.messages import FunctionRequest, FunctionResponse

_PROBES = frozenset({HEALTH_PATH, READY_PATH, METRICS_PATH})
_GAUGES = frozenset({"limit_bytes", "resident_experts", "resident_bytes", "overhead_bytes"})
"""Fields of a residency report that are gauges; the others are counters."""


@dataclass
class ExpertFunction:
    """Answers requests; with 503 while it has no `block` yet."""

    max_in_flight: int
    """Invocations at once; more are refused."""
    authentication: Authentication | None = None
    """Decides who may call; None lets everybody."""
    block: ExpertBlock | None = None
    instance: str = field(default_factory=lambda: os.urandom(8).hex())
    """A random name of this process."""
    state: FunctionState = field(init=False)
    changed: Condition = field(default_factory=condition)
    """Guards the state."""

    def __post_init__(self) -> None:
        self.state = FunctionState(max_in_flight=self.max_in_flight, used_at=time.monotonic())

    def __call__(self, request: FunctionRequest) -> FunctionResponse:
        """Answer one request. Never raises."""
        if request.path in _PROBES and request.method not in ("GET", "HEAD"):
            return FunctionResponse.error(405, "method_not_allowed", "ask with GET")
        if request.path == HEALTH_PATH:
            return FunctionResponse(body=[b"OK"])
        if request.path == READY_PATH:
            return self._ready()
        if request.path == METRICS_PATH:
            return FunctionResponse(body=[self._metrics().encode()])
        if request.path not in ("/", RESIDENCY_PATH):
            return FunctionResponse.error(404, "not_found", f"no such path: {request.path}")
        if self.authentication is not None and not self.authentication.allows(request.caller_proof):
            return self._refuse(401, UNAUTHORIZED, "the caller does not prove that it has the secret")
        if request.path == RESIDENCY_PATH:
            return self._residency(request)
        if request.method != "POST":
            return FunctionResponse.error(405, "method_not_allowed", "invoke with POST")
        return self._invoke(request)

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last invocation ended, or the block was opened; 0 while one is in flight."""
        with self.changed:
            return 0.0 if self.state.in_flight else time.monotonic() - self.state.used_at

    def opened(self, block: ExpertBlock) -> None:
        """Answer invocations with `block` from now on; idle time begins now."""
        with self.changed:
            self.block = block
            self.state.used_at = time.monotonic()

    def _ready(self) -> FunctionResponse:
        if self.block is None:
            return FunctionResponse.error(503, "starting", "the expert block is not open yet")
        return FunctionResponse(body=[b"OK"])

    def _residency(self, request: FunctionRequest) -> FunctionResponse:
        """GET reports the weights in memory, PUT changes their limit, DELETE drops those not in use."""
        if self.block is None:
            return FunctionResponse.error(503, "starting", "the expert block is not open yet")
        residency = self.block.residency
        if request.method == "PUT":
            limit = _limit_in(request.body)
            if limit is None:
                problem = 'expected {"limit_bytes": a number, 0 or more}'
                return FunctionResponse.error(400, "bad_request", problem)
            residency.set_limit(limit)
        elif request.method == "DELETE":
            residency.drop_idle()
        elif request.method != "GET":
            return FunctionResponse.error(405, "method_not_allowed", "use GET, PUT or DELETE")
        report = {**asdict(residency.report()), "kernel": self.block.kernel.name}
        body = json.dumps(report).encode()
        return FunctionResponse(body=[body], content_type="application/json")

    def _invoke(self, request: FunctionRequest) -> FunctionResponse:
        if not self._enter():
            return self._refuse(429, "too_many_requests", f"{self.max_in_flight} calls are in flight")
        try:
            block = self._open_block()
            result, version = self._run(block, request)
            return FunctionResponse(
                body=result.encode(),
                content_type=CONTENT_TYPE,
                after=block.residency.record_call,
                proof=self.authentication.proof if self.authentication else "",
                reported=version,
            )
        except WireError as error:
            return self._refuse(400, "bad_request", str(error))
        except InvocationRefused as error:
            return self._refuse(error.status, error.code, str(error))
        except Exception as error:
            # This is the process's edge: one bad call must not end the function.
            print(f"invocation failed: {error!r}", file=sys.stderr, flush=True)
            return self._refuse(500, "internal", "the invocation failed, see the function's log")
        finally:
            self._leave()

    def _open_block(self) -> ExpertBlock:
        if self.block is None:
            raise InvocationRefused(503, "starting", "the expert block is not open yet")
        return self.block

    def _run(self, block: ExpertBlock, request: FunctionRequest) -> tuple[InvocationResult, int]:
        """The result, and the version of the residency that it reports, or of an earlier one."""
        invocation = Invocation.decode(request.body)
        started = time.perf_counter()
        output, cold = block.run(invocation)
        seconds = time.perf_counter() - started
        with self.changed:
            # An invocation without rows computes nothing.
            self.state.invocations += len(output) > 0
            self.state.rows += len(output)
            self.state.seconds += seconds
            self.state.cold_experts += cold
        version = block.residency.state.version
        result = InvocationResult(
            output=output,
            instance=self.instance,
            address=request.local_address,
            seconds=seconds,
            cold_experts=cold,
            residency=block.residency.report(),
            kernel=block.kernel.name,
        )
        return result, version

    def _enter(self) -> bool:
        with self.changed:
            if self.state.in_flight >= self.max_in_flight:
                return False
            self.state.in_flight += 1
            self.state.used_at = time.monotonic()
            return True

    def _leave(self) -> None:
        with self.changed:
            self.state.in_flight -= 1
            self.state.used_at = time.monotonic()

    def _refuse(self, status: int, code: str, message: str) -> FunctionResponse:
        with self.changed:
            self.state.refused += 1
        return FunctionResponse.error(status, code, message)

    def _metrics(self) -> str:
        residency = self.block.residency.report() if self.block else ResidencyReport()
        values = {
            "invocations_total": self.state.invocations,
            "rows_total": self.state.rows,
            "compute_seconds_total": round(self.state.seconds, 6),
            "cold_experts_total": self.state.cold_experts,
            "refused_total": self.state.refused,
            "in_flight": self.state.in_flight,
            "experts": self.block.num_experts if self.block else 0,
            **{
                name if name in _GAUGES else f"{name}_total": value
                for name, value in asdict(residency).items()
            },
        }
        lines = []
        for name, value in values.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines.append(f"# TYPE faasmoe_function_{name} {kind}")
            lines.append(f"faasmoe_function_{name} {value}")
        if self.block:
            lines.append("# TYPE faasmoe_function_kernel_info gauge")
            lines.append(f'faasmoe_function_kernel_info{{kernel="{self.block.kernel.name}"}} 1')
        return "\n".join(lines) + "\n"


def _limit_in(body: bytes | bytearray) -> int | None:
    """The limit in the body of a PUT, in bytes; None for a malformed body."""
    try:
        limit = json.loads(body)["limit_bytes"]
    except (KeyError, RecursionError, TypeError, ValueError):
        return None
    # type() and not isinstance(): JSON's true is an int to the latter.
    return limit if type(limit) is int and limit >= 0 else None

"""The expert function: `POST /` runs an invocation; health, readiness, metrics and residency beside it."""

import json
import secrets
import sys
import threading
import time
from dataclasses import dataclass, field

from functions.contract.wire import CONTENT_TYPE, Invocation, InvocationResult, ResidencyReport, WireError
from functions.expert.expert_block import ExpertBlock, InvocationRefused
from functions.expert.http import Request, Response

_PROBES = frozenset({"/_/health", "/_/ready", "/metrics"})
_RESIDENCY = "/_/residency"
_GAUGES = frozenset({"limit_bytes", "resident_experts", "resident_bytes", "overhead_bytes"})
"""Of a residency report; the rest are counters."""


@dataclass
class Counters:
    """What the function has done since it started."""

    invocations: int = 0
    rows: int = 0
    seconds: float = 0.0
    cold_experts: int = 0
    refused: int = 0


@dataclass
class ExpertFunction:
    """Routes requests. Until `block` is set, the function is starting and answers 503."""

    max_in_flight: int
    block: ExpertBlock | None = None
    instance: str = field(default_factory=lambda: secrets.token_hex(8))
    counters: Counters = field(default_factory=Counters)
    _in_flight: int = 0
    _used_at: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, request: Request) -> Response:
        """Answer one request; never raises, whatever the request holds."""
        if request.path in _PROBES and request.method not in ("GET", "HEAD"):
            return Response.error(405, "method_not_allowed", "ask with GET")
        if request.path == "/_/health":
            return Response(body=[b"OK"])
        if request.path == "/_/ready":
            return self._ready()
        if request.path == "/metrics":
            return Response(body=[self._metrics().encode()])
        if request.path == _RESIDENCY:
            return self._residency(request)
        if request.path != "/":
            return Response.error(404, "not_found", f"no such path: {request.path}")
        if request.method != "POST":
            return Response.error(405, "method_not_allowed", "invoke with POST")
        return self._invoke(request)

    @property
    def idle_seconds(self) -> float:
        """Since the last invocation began, or the process; 0 while one is in flight."""
        with self._lock:
            return 0.0 if self._in_flight else time.monotonic() - self._used_at

    def opened(self, block: ExpertBlock) -> None:
        """The function can answer from now on; until then it was not idle."""
        with self._lock:
            self.block = block
            self._used_at = time.monotonic()

    def _ready(self) -> Response:
        if self.block is None:
            return Response.error(503, "starting", "the expert block is not open yet")
        return Response(body=[b"OK"])

    def _residency(self, request: Request) -> Response:
        """GET tells what is held, PUT changes the limit, DELETE drops what is not in use."""
        if self.block is None:
            return Response.error(503, "starting", "the expert block is not open yet")
        residency = self.block.residency
        if request.method == "PUT":
            limit = _limit_in(request.body)
            if limit is None:
                return Response.error(400, "bad_request", 'expected {"limit_bytes": a number, 0 or more}')
            residency.set_limit(limit)
        elif request.method == "DELETE":
            residency.drop_idle()
        elif request.method != "GET":
            return Response.error(405, "method_not_allowed", "use GET, PUT or DELETE")
        body = json.dumps(residency.report().to_json()).encode()
        return Response(body=[body], content_type="application/json")

    def _invoke(self, request: Request) -> Response:
        if not self._enter():
            return self._refuse(429, "too_many_requests", f"{self.max_in_flight} calls are in flight")
        try:
            body, block = self._run(request).encode(), self.block
            after = block.residency.count_call if block else None
            return Response(body=body, content_type=CONTENT_TYPE, after=after)
        except WireError as error:
            return self._refuse(400, "bad_request", str(error))
        except InvocationRefused as error:
            return self._refuse(error.status, error.code, str(error))
        except Exception as error:
            # The edge of the process: one bad call must not take the function down with it.
            print(f"invocation failed: {error!r}", file=sys.stderr, flush=True)
            return self._refuse(500, "internal", "the invocation failed, see the function's log")
        finally:
            self._leave()

    def _run(self, request: Request) -> InvocationResult:
        block = self.block
        if block is None:
            raise InvocationRefused(503, "starting", "the expert block is not open yet")
        invocation = Invocation.decode(request.body)
        started = time.perf_counter()
        output, cold = block.run(invocation)
        seconds = time.perf_counter() - started
        with self._lock:
            # One without rows has only told what to expect.
            self.counters.invocations += len(output) > 0
            self.counters.rows += len(output)
            self.counters.seconds += seconds
            self.counters.cold_experts += cold
        return InvocationResult(
            output=output,
            instance=self.instance,
            address=request.local_address,
            seconds=seconds,
            cold_experts=cold,
            residency=block.residency.report(),
        )

    def _enter(self) -> bool:
        with self._lock:
            if self._in_flight >= self.max_in_flight:
                return False
            self._in_flight += 1
            self._used_at = time.monotonic()
            return True

    def _leave(self) -> None:
        with self._lock:
            self._in_flight -= 1
            self._used_at = time.monotonic()

    def _refuse(self, status: int, code: str, message: str) -> Response:
        with self._lock:
            self.counters.refused += 1
        return Response.error(status, code, message)

    def _metrics(self) -> str:
        residency = self.block.residency.report() if self.block else ResidencyReport()
        values = {
            "invocations_total": self.counters.invocations,
            "rows_total": self.counters.rows,
            "compute_seconds_total": round(self.counters.seconds, 6),
            "cold_experts_total": self.counters.cold_experts,
            "refused_total": self.counters.refused,
            "in_flight": self._in_flight,
            "experts": self.block.num_experts if self.block else 0,
            **{
                name if name in _GAUGES else f"{name}_total": value
                for name, value in residency.to_json().items()
            },
        }
        lines = []
        for name, value in values.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines.append(f"# TYPE faasmoe_function_{name} {kind}")
            lines.append(f"faasmoe_function_{name} {value}")
        return "\n".join(lines) + "\n"


def _limit_in(body: bytes | bytearray) -> int | None:
    """The limit that a PUT asks for, or None for a body that is no such request."""
    try:
        limit = json.loads(body)["limit_bytes"]
    except (KeyError, RecursionError, TypeError, ValueError):
        return None
    # type() and not isinstance(): JSON's true is an int to the latter.
    return limit if type(limit) is int and limit >= 0 else None

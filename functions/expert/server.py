"""The expert function: `POST /` runs an invocation; health, readiness and metrics beside it."""

import secrets
import sys
import threading
import time
from dataclasses import dataclass, field

from functions.expert.expert_block import ExpertBlock, InvocationRefused
from functions.expert.http import Request, Response
from functions.expert.wire import CONTENT_TYPE, Invocation, InvocationResult, WireError

_PROBES = frozenset({"/_/health", "/_/ready", "/metrics"})


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
        if request.path != "/":
            return Response.error(404, "not_found", f"no such path: {request.path}")
        if request.method != "POST":
            return Response.error(405, "method_not_allowed", "invoke with POST")
        return self._invoke(request)

    def _ready(self) -> Response:
        if self.block is None:
            return Response.error(503, "starting", "the expert block is not mapped yet")
        return Response(body=[b"OK"])

    def _invoke(self, request: Request) -> Response:
        if not self._enter():
            return self._refuse(429, "too_many_requests", f"{self.max_in_flight} calls are in flight")
        try:
            return Response(body=self._run(request).encode(), content_type=CONTENT_TYPE)
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
            raise InvocationRefused(503, "starting", "the expert block is not mapped yet")
        invocation = Invocation.decode(request.body)
        started = time.perf_counter()
        output, cold = block.run(invocation)
        seconds = time.perf_counter() - started
        with self._lock:
            self.counters.invocations += 1
            self.counters.rows += len(output)
            self.counters.seconds += seconds
            self.counters.cold_experts += cold
        return InvocationResult(
            output=output,
            instance=self.instance,
            address=request.local_address,
            seconds=seconds,
            cold_experts=cold,
            resident_experts=block.residency.resident_experts,
            resident_bytes=block.residency.resident_bytes,
        )

    def _enter(self) -> bool:
        with self._lock:
            if self._in_flight >= self.max_in_flight:
                return False
            self._in_flight += 1
            return True

    def _leave(self) -> None:
        with self._lock:
            self._in_flight -= 1

    def _refuse(self, status: int, code: str, message: str) -> Response:
        with self._lock:
            self.counters.refused += 1
        return Response.error(status, code, message)

    def _metrics(self) -> str:
        residency = self.block.residency if self.block else None
        values = {
            "invocations_total": self.counters.invocations,
            "rows_total": self.counters.rows,
            "compute_seconds_total": round(self.counters.seconds, 6),
            "cold_experts_total": self.counters.cold_experts,
            "refused_total": self.counters.refused,
            "in_flight": self._in_flight,
            "experts": self.block.num_experts if self.block else 0,
            "resident_experts": residency.resident_experts if residency else 0,
            "resident_bytes": residency.resident_bytes if residency else 0,
        }
        lines = []
        for name, value in values.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines.append(f"# TYPE faasmoe_function_{name} {kind}")
            lines.append(f"faasmoe_function_{name} {value}")
        return "\n".join(lines) + "\n"

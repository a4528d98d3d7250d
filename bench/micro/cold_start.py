"""Measures an idle function's memory and its cold start: `python -m bench.micro.cold_start`.

Runs the embedded gateway with the functions of the bundled model. Prints the private memory of an idle
function, and the time of a call to a function that is scaled to zero, next to that of a warm call.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from control_plane.partition.manifest import Manifest
from functions.contract.messages import Invocation

MODEL = Path(__file__).parents[2] / "models" / "demo"
ROUNDS = 15
WARM_CALLS = 20
MAX_PRIVATE_MB = 30
MAX_COLD_SECONDS = 0.4


def main() -> None:
    """Measure, and print each figure with its aim."""
    with tempfile.TemporaryDirectory(prefix="faasmoe-bench-") as folder:
        target = Path(folder) / "demo"
        faasmoe("partition", MODEL, target)
        manifest = Manifest.load(target)
        with gateway(target) as (process, url):
            faasmoe("deploy", target, "--gateway", url)
            cold, warm = call_times(url, manifest)
            private = [child.memory_full_info().uss / 1e6 for child in process.children()]
    memory, start = statistics.median(private), statistics.median(cold)
    print(f"private memory of an idle function: {memory:.1f} MB, {verdict(memory, MAX_PRIVATE_MB)}")
    print(f"call of a function at zero: {start:.3f} s, {verdict(start, MAX_COLD_SECONDS)}")
    print(f"the same call, warm: {statistics.median(warm):.4f} s")


def call_times(url: str, manifest: Manifest) -> tuple[list[float], list[float]]:
    """Seconds of each cold call and each warm call, to the first functions in turn."""
    cold, warm = [], []
    for number in range(ROUNDS):
        function = manifest.blocks[number % len(manifest.blocks)].function
        body = invocation(manifest, function)
        to_zero = json.dumps({"serviceName": function, "replicas": 0}).encode()
        post(f"{url}/system/scale-function/{function}", to_zero)
        cold.append(post(f"{url}/function/{function}", body))
        warm += [post(f"{url}/function/{function}", body) for _ in range(WARM_CALLS)]
    return cold, warm


def invocation(manifest: Manifest, function: str) -> bytes:
    """The body of a call with one row for one of the function's experts."""
    layer, experts = next(iter(manifest.block(function).experts.items()))
    dtype = np.uint16 if manifest.dtype == "bf16" else np.float32
    call = Invocation(
        layer,
        manifest.fingerprint,
        np.zeros((1, manifest.hidden_size), dtype),
        np.array([[experts[0]]], np.int16),
        np.ones((1, 1), np.float32),
    )
    return b"".join(call.encode())


def post(url: str, body: bytes) -> float:
    """Seconds until the whole answer has arrived. Raises `HTTPError` if it is not a success."""
    started = time.perf_counter()
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as answer:
        answer.read()
    return time.perf_counter() - started


@contextmanager
def gateway(partition: Path) -> Iterator[tuple[psutil.Process, str]]:
    """Run the embedded gateway. Yields its process and its address."""
    command = [sys.executable, "-m", "control_plane", "gateway", str(partition), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            found = re.search(r"http://[\w.:]+", line)
            if not found:
                raise SystemExit("the gateway did not start, see above")
            yield psutil.Process(process.pid), found.group()
        finally:
            process.terminate()


def faasmoe(*arguments: object) -> None:
    """Run a faasmoe command."""
    command = [sys.executable, "-m", "control_plane", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def verdict(value: float, aim: float) -> str:
    """Says whether the value is under the aim."""
    return f"under the aim of {aim}" if value < aim else f"MISSES the aim of {aim}"


if __name__ == "__main__":
    main()

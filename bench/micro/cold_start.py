"""Measures functions' memory and starts: `python -m bench.micro.cold_start`.

Runs the embedded gateway with the functions of the bundled model, a layer a function and an expert a
function. Prints the memory of an idle function, the time of a call to a function that is scaled to zero, next
to that of a warm call, and the time until all functions are ready. Beside it, what a function takes that is
started as a program.
"""

import json
import os
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

from bench.support.processes import free_port
from control_plane.partition.manifest import Manifest
from functions.contract.messages import Invocation
from functions.contract.process import FUNCTION_VARIABLE, PARTITION_VARIABLE, PORT_VARIABLE
from functions.contract.secret import CALLER_HEADER, FunctionSecret
from functions.host.memory import memory_sizes

MODEL = Path(__file__).parents[2] / "models" / "demo"
PROGRAM = "functions.expert"
ROUNDS = 15
WARM_CALLS = 20
MAX_MB = 5
MAX_COLD_SECONDS = 0.03
MAX_START_SECONDS = 60
"""The longest wait for functions to start."""


def main() -> None:
    """Measure, and print each figure with its aim."""
    with tempfile.TemporaryDirectory(prefix="faasmoe-bench-") as folder:
        coarse, fine = Path(folder) / "coarse", Path(folder) / "fine"
        faasmoe("partition", MODEL, coarse)
        faasmoe("partition", MODEL, fine, "--experts-per-function", 1)
        secret = Path(folder) / "secret"
        secret.write_text("the secret of the benchmark")
        for target in (coarse, fine):
            measure_gateway(target, secret)
        measure_program(coarse)


def measure_gateway(partition: Path, secret: Path) -> None:
    """Print the figures of a partition's functions on the embedded gateway; they share the `secret`."""
    manifest = Manifest.load(partition)
    with gateway(partition) as (process, url):
        started = time.perf_counter()
        faasmoe("deploy", partition, "--gateway", url, "--function-secret-file", secret)
        until_ready(url, manifest)
        deployed = time.perf_counter() - started
        idle = [megabytes(each) for each in functions(process)]
        total = sum(idle) + sum(megabytes(each) for each in servers(process))
        cold, warm = call_times(url, manifest, FunctionSecret.read(secret))
    memory, start = statistics.median(idle), statistics.median(cold)
    print(f"{len(manifest.blocks)} functions, deployed and ready after {deployed:.2f} s")
    print(f"  PSS of an idle function: {memory:.1f} MB, {verdict(memory, MAX_MB)}; of all: {total:.0f} MB")
    print(f"  call of a function at zero: {start:.4f} s, {verdict(start, MAX_COLD_SECONDS)}")
    print(f"  the same call, warm: {statistics.median(warm):.4f} s")


def measure_program(partition: Path) -> None:
    """Print the figures of functions that are started as programs, one at a time."""
    manifest = Manifest.load(partition)
    cold, memory = [], []
    port = free_port()
    for block in manifest.blocks:
        settings = {
            FUNCTION_VARIABLE: block.function,
            PARTITION_VARIABLE: str(partition),
            PORT_VARIABLE: str(port),
        }
        started = time.perf_counter()
        with subprocess.Popen([sys.executable, "-m", PROGRAM], env={**os.environ, **settings}) as process:
            try:
                answered(f"http://127.0.0.1:{port}", invocation(manifest, block.function))
                cold.append(time.perf_counter() - started)
                memory.append(megabytes(psutil.Process(process.pid)))
            finally:
                process.kill()
    print(f"started as a program: first answer after {statistics.median(cold):.4f} s")
    print(f"  PSS with one expert, alone on the machine: {statistics.median(memory):.1f} MB")


def answered(url: str, body: bytes) -> None:
    """Call again and again until there is an answer. Raises OSError if there is none in time."""
    deadline = time.monotonic() + MAX_START_SECONDS
    while True:
        try:
            post(url, body)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)
        else:
            return


def functions(gateway: psutil.Process) -> list[psutil.Process]:
    """The gateway's functions."""
    return [each for each in gateway.children(recursive=True) if PROGRAM in each.cmdline()]


def servers(gateway: psutil.Process) -> list[psutil.Process]:
    """The processes that functions are forked from."""
    return [each for each in gateway.children() if PROGRAM not in each.cmdline()]


def megabytes(process: psutil.Process) -> float:
    """The proportional set size: memory that processes share is divided among them."""
    return memory_sizes(process.pid)["Pss"] / 1e6


def until_ready(url: str, manifest: Manifest) -> None:
    """Wait until the gateway lists each function as available."""
    available, deadline = 0, time.monotonic() + MAX_START_SECONDS
    while available < len(manifest.blocks):
        if time.monotonic() > deadline:
            raise SystemExit(f"{available} of {len(manifest.blocks)} functions have started")
        time.sleep(0.01)
        with urllib.request.urlopen(f"{url}/system/functions", timeout=60) as answer:
            available = sum(function["availableReplicas"] for function in json.load(answer))


def call_times(url: str, manifest: Manifest, secret: FunctionSecret) -> tuple[list[float], list[float]]:
    """Seconds of each cold call and each warm call, to the first functions in turn."""
    cold, warm = [], []
    for number in range(ROUNDS):
        function = manifest.blocks[number % len(manifest.blocks)].function
        body = invocation(manifest, function)
        to_zero = json.dumps({"serviceName": function, "replicas": 0}).encode()
        post(f"{url}/system/scale-function/{function}", to_zero)
        proof = secret.caller_proof(function)
        cold.append(post(f"{url}/function/{function}", body, proof))
        warm += [post(f"{url}/function/{function}", body, proof) for _ in range(WARM_CALLS)]
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


def post(url: str, body: bytes, proof: str = "") -> float:
    """Seconds until the whole answer has arrived. Raises `HTTPError` if it is not a success."""
    started = time.perf_counter()
    # Both the gateway and functions take it; what a browser's form sends is refused.
    headers = {"Content-Type": "application/json", CALLER_HEADER: proof}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
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

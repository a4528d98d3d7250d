"""The program is run as each system needs it, and its table is read. Failures are reported.

The program is a stand-in: a script that prints what llama-batched-bench prints.
"""

import asyncio
import sys
from pathlib import Path

import pytest

from bench.memory_limit.scenarios import NO_LIMIT
from bench.peers.batched_bench import IK_LLAMA_CPP, LLAMA_CPP, BatchedBench, Dialect, read_table
from control_plane.errors import ConfigError, FaaSMoEError

PRINTED = """
llama_batched_bench: n_kv_max = 96, n_batch = 2048, n_ubatch = 512, flash_attn = -1, is_pp_shared = 0

|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |
|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|
|    64 |     32 |    6 |    576 |    3.405 |   112.78 |    9.600 |    20.00 |   13.005 |    44.29 |
"""
BENCH = """
import sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert open(options["-m"]).read() == "weights"
prompts, sequences = ([int(number) for number in options[name].split(",")] for name in ("-npp", "-npl"))
generated = int(options["-ntg"])
assert int(options["-c"]) >= max(sequences) * (max(prompts) + generated)
print("loading", file=sys.stderr)
for prompt in prompts:
    for count in sequences:
        cells = prompt, generated, count, 0, 0.5, prompt + count, 0.25, 100 * prompt + count, 1, 1
        print("|" + "".join(f" {cell:6} |" for cell in cells), file=sys.stderr)
print(sys.argv[13:], file=open(options["-m"] + ".options", "a"))
"""
FAILS = """
import sys
sys.exit("error: unable to load model")
"""


def bench(folder: Path, script: str, dialect: Dialect) -> BatchedBench:
    program, gguf = folder / "llama-batched-bench", folder / "q8_0.gguf"
    program.write_text(f"#!{sys.executable}\n{script}")
    program.chmod(0o755)
    gguf.write_text("weights")
    return BatchedBench(dialect, program, gguf, 2, 32)


def test_rows_are_found_among_other_lines() -> None:
    ((key, measured),) = read_table(PRINTED).items()
    assert key == (64, 6)
    assert (measured.prefill.value, measured.decode.value) == (112.78, 20.0)


@pytest.mark.parametrize(
    ("dialect", "options"),
    [(LLAMA_CPP, ["--load-mode", "none"]), (IK_LLAMA_CPP, ["--run-time-repack"])],
)
def test_without_a_limit_all_rows_come_from_repacked_weights(
    tmp_path: Path, dialect: Dialect, options: list[str]
) -> None:
    speeds = asyncio.run(bench(tmp_path, BENCH, dialect).speeds(NO_LIMIT))
    assert {row: speed.value for row, speed in speeds.items()} == {
        "decode, 1 sequence": 6401,
        "decode, 6 sequences": 6406,
        "decode, 32 sequences": 6432,
        "prefill of 64": 65,
        "prefill of 512": 513,
    }
    used = (tmp_path / "q8_0.gguf.options").read_text().splitlines()
    assert used == [str(options)] * 2


def test_under_a_limit_weights_are_mapped(tmp_path: Path) -> None:
    try:
        speeds = asyncio.run(bench(tmp_path, BENCH, LLAMA_CPP).speeds("1GB"))
    except ConfigError as error:
        pytest.skip(str(error))
    assert {row: speed.value for row, speed in speeds.items()} == {"decode within 1GB, 1 sequence": 6401}
    used = (tmp_path / "q8_0.gguf.options").read_text().splitlines()
    assert used == [str(["--load-mode", "mmap", "--no-repack"])]


def test_the_reason_of_a_failure_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FaaSMoEError, match=r"^llama.cpp q8_0 has ended with 1: error: unable to load model$"):
        asyncio.run(bench(tmp_path, FAILS, LLAMA_CPP).speeds(NO_LIMIT))


def test_a_missing_row_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(FaaSMoEError, match="has ended with 0: done"):
        asyncio.run(bench(tmp_path, "print('done')", LLAMA_CPP).speeds(NO_LIMIT))

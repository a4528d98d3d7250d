"""llama.cpp gets a model of a partition's weights, and its speeds are a row of the table.

The program is a stand-in: a script that prints what llama-batched-bench prints.
"""

import sys
from pathlib import Path

import gguf

from bench.memory_limit.faasmoe import DecodeLoad
from bench.memory_limit.scenarios import NO_LIMIT
from bench.peers.families import HEADER, measured_in_llama_cpp
from bench.peers.random_gguf import RandomGguf
from tests.support.models.gguf_models import gguf_config

BENCH = """
import sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
for prompt in options["-npp"].split(","):
    for count in options["-npl"].split(","):
        cells = prompt, options["-ntg"], count, 0, 1, int(prompt) + 1, 1, 10 * int(count), 1, 1
        print("|" + "".join(f" {cell:>6} |" for cell in cells))
"""


def random_gguf(folder: Path, script: str) -> RandomGguf:
    partition, program = folder / "tiny", folder / "llama-batched-bench"
    gguf_config("qwen3_moe", moe_intermediate_size=32, dtype="bfloat16").save_pretrained(partition)
    program.write_text(f"#!{sys.executable}\n{script}")
    program.chmod(0o755)
    return RandomGguf("tiny", partition, program, 1)


def test_the_file_is_of_the_partitions_shape(tmp_path: Path) -> None:
    peer = random_gguf(tmp_path, BENCH)
    peer.make()
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(peer.file).tensors}
    assert kinds["blk.3.ffn_up_exps.weight"] == "Q4_0"
    assert peer.seconds > 0


def test_a_row_of_medians(tmp_path: Path) -> None:
    peer = random_gguf(tmp_path, BENCH)
    cells = measured_in_llama_cpp(peer, NO_LIMIT, DecodeLoad(2, 4))
    assert len(cells) == len(HEADER)
    row = dict(zip(HEADER, cells, strict=True))
    assert row["shape"] == "tiny in llama.cpp"
    assert row["prefill of 512, tokens/s"] == "513.0"
    assert (row["decode, 1 at once"], row["decode, 6 at once"]) == ("10.0", "60.0")
    assert not peer.file.exists()


def test_a_program_that_fails_is_told_in_the_row(tmp_path: Path) -> None:
    peer = random_gguf(tmp_path, "import sys; sys.exit('error: unable to load model')")
    name, problem = measured_in_llama_cpp(peer, NO_LIMIT, DecodeLoad(1, 4))
    assert name == "tiny in llama.cpp"
    assert "unable to load model" in problem
    assert not peer.file.exists()

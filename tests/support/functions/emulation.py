"""The expert kernel on an emulated ARM processor: a program without Python, compiled here and run by QEMU."""

import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import functions
from functions.kernels import ExpertShape, GatedFFNKernel
from functions.kernels.activation import FUNCTIONS
from functions.kernels.arguments import activation_dtype
from functions.kernels.bfloat16 import Float32
from functions.kernels.gated_ffn import Inputs
from functions.kernels.packed_types import PACKED_TYPES

COMPILER = "aarch64-linux-gnu-gcc"
EMULATOR = "qemu-aarch64"
PROCESSORS = {"neon": "cortex-a53", "neon_dotprod": "cortex-a76", "neon_i8mm": "max"}
"""For each instruction set, a processor that has it and no better one. "max" has all that QEMU knows."""
CALL_SECONDS = 60
DTYPES = tuple(PACKED_TYPES)
"""In the order of `enum dtype`."""


def missing_tool() -> str | None:
    """The tool that emulation needs and this machine lacks."""
    return next((tool for tool in (COMPILER, EMULATOR) if not shutil.which(tool)), None)


def compile_program(folder: Path) -> Path:
    """Compile the program, with the options of the extension, into `folder`."""
    program = folder / "gated_ffn_call"
    headers = Path(functions.__path__[0]) / "kernels" / "csrc"
    source = Path(__file__).with_name("gated_ffn_call.c")
    # Python.h defines _GNU_SOURCE for the extension.
    options = ["-D_GNU_SOURCE", "-O3", "-std=c11", "-pthread", "-static", f"-I{headers}"]
    subprocess.run([COMPILER, *options, str(source), "-o", str(program), "-lm"], check=True)
    return program


def emulated_isas(program: Path, processor: str) -> list[str]:
    """The instruction sets that the program finds on a processor, best first."""
    return _run(program, processor).decode().split()


@dataclass(frozen=True)
class EmulatedGatedFFN(GatedFFNKernel):
    """The kernel in C with the instruction set `name`. Each call is a process."""

    program: Path
    processor: str

    def _compute(
        self, shape: ExpertShape, inputs: Inputs, carry: Float32 | None, partial: bool, threads: int
    ) -> NDArray[Any]:
        hidden_states = inputs.hidden_states
        hidden_dtype = DTYPES.index(activation_dtype(hidden_states))
        out_dtype = 0 if partial else hidden_dtype
        gate_up, down, hidden_size, intermediate_size, has_bias, function, *numbers = shape.as_arguments()
        call = struct.pack(
            "=15q3d",
            *(DTYPES.index(gate_up), DTYPES.index(down), hidden_dtype, out_dtype),
            *inputs.expert_index.shape,
            *(hidden_size, intermediate_size, threads),
            *(inputs.block.nbytes, len(inputs.offsets), carry is not None),
            *(has_bias, FUNCTIONS.index(function), *numbers),
        )
        buffers = [array.tobytes() for array in (*inputs, carry) if array is not None]
        out = _run(self.program, self.processor, self.name, call=b"".join([call, *buffers]))
        dtype = np.float32 if partial else hidden_states.dtype
        return np.frombuffer(out, dtype).reshape(hidden_states.shape)


def _run(program: Path, processor: str, *arguments: str, call: bytes = b"") -> bytes:
    command = [EMULATOR, "-cpu", processor, str(program), *arguments]
    done = subprocess.run(command, input=call, capture_output=True, timeout=CALL_SECONDS, check=True)
    return done.stdout

"""The messages of the invocation contract: a function's side and the control plane's."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np

from bench.robustness.fuzz.support import model
from bench.robustness.fuzz.support.json_mutation import mutated_message
from bench.robustness.fuzz.support.target import Misbehaviour, Target
from control_plane.partition.manifest import Manifest
from functions.contract.messages import Invocation, InvocationResult, ResidencyReport
from functions.contract.safetensors_codec import WireError
from functions.expert.expert_block import ExpertBlock, InvocationRefused
from functions.kernels import available_isas, load_kernel

MAX_ROWS = 9
"""One more than the kernels' largest panel."""


def example_invocations(manifest: Manifest) -> list[bytes]:
    """Valid invocations of the manifest's first function, as messages."""
    block = manifest.blocks[0]
    layer, experts = next(iter(block.experts.items()))
    random = np.random.default_rng(0)
    examples = []
    for rows in (0, 1, 2, MAX_ROWS):
        values = random.standard_normal((rows, manifest.hidden_size), np.float32)
        invocation = Invocation(
            layer=layer,
            model=manifest.fingerprint,
            # The upper half of a float32 is a bfloat16.
            hidden_states=(values.view(np.uint32) >> 16).astype(np.uint16),
            expert_index=random.choice([-1, *experts], (rows, 2)).astype(np.int16),
            expert_weight=random.random((rows, 2), np.float32),
        )
        limited = replace(invocation, resident_limit=manifest.expert_nbytes, prefetch={layer: list(experts)})
        examples += [b"".join(each.encode()) for each in (invocation, limited)]
    return examples


@contextmanager
def invocations(folder: Path) -> Iterator[Target]:
    """Decodes an invocation and runs it; the first byte of an input chooses the kernel and the partition."""
    with ExitStack() as stack:
        blocks, examples = [], []
        for dtype in model.DTYPES:
            manifest = model.manifest(folder, dtype)
            examples.append(example_invocations(manifest))
            block = ExpertBlock.open(folder / dtype, manifest.blocks[0].function, load_kernel(), threads=2)
            stack.callback(block.residency.close)
            blocks.append([replace(block, kernel=load_kernel(isa)) for isa in available_isas()])

        def make(random: Random) -> bytes:
            number = random.randrange(len(blocks))
            kernel = random.randrange(len(blocks[number]))
            message = mutated_message(random.choice(examples[number]), random, examples[number])
            return bytes([kernel * len(blocks) + number]) + message

        def run(data: bytes) -> bool:
            kernel, number = divmod(data[0] if data else 0, len(blocks))
            block = blocks[number][kernel % len(blocks[number])]
            # As the server has it: a bytearray, which the tensors are views of.
            return _answered(block, bytearray(data[1:]))

        yield Target(make, run)


def _answered(block: ExpertBlock, body: bytearray) -> bool:
    try:
        invocation = Invocation.decode(body)
        with np.errstate(all="ignore"):
            output, _ = block.run(invocation)
    except WireError:
        return False
    except InvocationRefused as error:
        if error.status >= 500:
            raise
        return False
    if output.shape != invocation.hidden_states.shape or output.dtype != invocation.hidden_states.dtype:
        raise Misbehaviour(f"output {output.dtype} {output.shape}")
    return True


@contextmanager
def answers(folder: Path) -> Iterator[Target]:
    """Decodes a function's answer, as the control plane does."""
    examples = example_answers()

    def make(random: Random) -> bytes:
        return mutated_message(random.choice(examples), random, examples)

    def run(data: bytes) -> bool:
        try:
            result = InvocationResult.decode(bytearray(data))
        except WireError:
            return False
        b"".join(result.encode())
        return True

    yield Target(make, run)


def example_answers() -> list[bytes]:
    """Valid answers of a function, as messages."""
    return [
        b"".join(
            InvocationResult(
                output=np.ones((rows, 8), dtype),
                instance="0123456789abcdef",
                address="127.0.0.1:8080",
                seconds=0.25,
                cold_experts=rows,
                residency=ResidencyReport(limit_bytes=1 << 40, read_bytes=12345),
                kernel="avx2",
            ).encode()
        )
        for dtype in (np.float32, np.uint16)
        for rows in (0, 1, 3)
    ]

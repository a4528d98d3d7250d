"""Runs llama.cpp on a GGUF file, and prints its prefill and decode speed as one JSON object.

    python -m bench.memory_limit.llama_cpp_process --gguf MODEL.gguf --sequences 6 --tokens 64

Run it with a Python that has llama-cpp-python (`pip install llama-cpp-python`). It uses argparse because of
this project's requirements such a Python needs only NumPy. Tokens are random, as sampling costs little.

llama.cpp's threads wait for each other in a busy loop. Other load on their cores makes it many times slower.
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT_STEP = 256
"""llama.cpp rounds a sequence's context up to this."""
LOG_WARNING, LOG_ERROR = 3, 4
"""llama.cpp's log levels that are printed."""


@dataclass(frozen=True)
class LlamaCppSpeeds:
    """Speeds of all sequences together, in tokens per second, and memory in bytes."""

    first_prefill_speed: float
    """Speed of the first prompts of the process."""
    prefill_speed: float
    """Speed of the prompts after those."""
    decode_speed: float
    first_half_speed: float
    """Speed of the first half of the generated tokens."""
    second_half_speed: float
    proportional_bytes: int
    resident_bytes: int
    read_bytes: int
    """Bytes read from disk since the process started."""
    decode_read_bytes: int
    """Bytes read from disk while decoding."""


class LlamaContext:
    """A model that llama.cpp has mapped, with a KV cache for several sequences."""

    def __init__(self, library: Any, model: Any, context: Any, batch: Any) -> None:
        self._library = library
        self._context = context
        self._batch = batch
        self.vocab_size: int = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))

    def decode(self, tokens: np.ndarray, position: int) -> float:
        """Compute tokens [sequences, length] from a position on. Returns seconds. Raises RuntimeError."""
        batch = self._batch
        batch.n_tokens = tokens.size
        for row, ((sequence, index), token) in enumerate(np.ndenumerate(tokens)):
            batch.token[row] = int(token)
            batch.pos[row] = position + index
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequence
            batch.logits[row] = index == tokens.shape[1] - 1
        started = time.perf_counter()
        status = self._library.llama_decode(self._context, batch)
        self._library.llama_synchronize(self._context)
        if status:
            raise RuntimeError(f"llama_decode has returned {status}")
        return time.perf_counter() - started

    def clear(self) -> None:
        """Empty the KV cache."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)


@contextmanager
def opened(gguf: Path, threads: int, sequences: int, length: int) -> Iterator[LlamaContext]:
    """Map a model for sequences of up to `length` tokens.

    Raises ImportError without llama_cpp, RuntimeError if llama.cpp fails.
    """
    library = importlib.import_module("llama_cpp")
    log = library.llama_log_callback(_log)
    library.llama_log_set(log, None)
    library.llama_backend_init()
    with ExitStack() as stack:
        model_params = library.llama_model_default_params()
        model_params.load_mode = library.LLAMA_LOAD_MODE_MMAP
        # Use the mapped weights directly: repacked ones, as for AMX, would be in memory a second time.
        model_params.use_extra_bufts = False
        model = library.llama_model_load_from_file(os.fsencode(gguf), model_params)
        if not model:
            raise RuntimeError(f"cannot load {gguf}, see above")
        stack.callback(library.llama_model_free, model)
        params = library.llama_context_default_params()
        params.n_ctx = sequences * (-(-length // CONTEXT_STEP) * CONTEXT_STEP)
        params.n_seq_max = params.n_outputs_max = sequences
        params.n_batch = sequences * length
        params.n_threads = params.n_threads_batch = threads
        context = library.llama_init_from_model(model, params)
        if not context:
            raise RuntimeError("cannot make a context, see above")
        stack.callback(library.llama_free, context)
        batch = library.llama_batch_init(params.n_batch, 0, 1)
        stack.callback(library.llama_batch_free, batch)
        yield LlamaContext(library, model, context, batch)


def measure(
    llama: LlamaContext, sequences: int, prompt_tokens: int, tokens: int, seed: int
) -> LlamaCppSpeeds:
    """Compute one prompt of each sequence, then a second one and `tokens` tokens after it."""
    random = np.random.default_rng(seed)
    first_prefill = llama.decode(random.integers(llama.vocab_size, size=(sequences, prompt_tokens)), 0)
    llama.clear()
    drawn = random.integers(llama.vocab_size, size=(sequences, prompt_tokens + tokens))
    prefill = llama.decode(drawn[:, :prompt_tokens], 0)
    read_before = read_bytes()
    steps = [
        llama.decode(drawn[:, position : position + 1], position)
        for position in range(prompt_tokens, prompt_tokens + tokens)
    ]
    memory = smaps_rollup()
    return LlamaCppSpeeds(
        first_prefill_speed=sequences * prompt_tokens / first_prefill,
        prefill_speed=sequences * prompt_tokens / prefill,
        decode_speed=_speed(sequences, steps),
        first_half_speed=_speed(sequences, steps[: tokens // 2]),
        second_half_speed=_speed(sequences, steps[tokens // 2 :]),
        proportional_bytes=memory["Pss"],
        resident_bytes=memory["Rss"],
        read_bytes=read_bytes(),
        decode_read_bytes=read_bytes() - read_before,
    )


def read_bytes() -> int:
    """Bytes that this process has read from disk, including page faults."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def smaps_rollup() -> dict[str, int]:
    """The kernel's sums over the mappings of this process, in bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}


def _log(level: int, text: bytes, _: Any) -> None:
    if level in (LOG_WARNING, LOG_ERROR):
        print(text.decode(errors="replace"), end="", file=sys.stderr)


def _speed(sequences: int, steps: Sequence[float]) -> float:
    return sequences * len(steps) / sum(steps) if steps else 0.0


def count(text: str) -> int:
    """A whole number above zero, as a type for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--threads", type=count, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--sequences", type=count, default=1)
    parser.add_argument("--prompt-tokens", type=count, default=64)
    parser.add_argument("--tokens", type=count, default=64, help="tokens that each sequence generates")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    length = arguments.prompt_tokens + arguments.tokens
    try:
        with opened(arguments.gguf, arguments.threads, arguments.sequences, length) as llama:
            measured = measure(
                llama, arguments.sequences, arguments.prompt_tokens, arguments.tokens, arguments.seed
            )
    except (ImportError, RuntimeError) as error:
        sys.exit(f"llama.cpp: {error}")
    print(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()

"""The unsplit model in transformers, with its continuous batching, as a minimal OpenAI server.

It does only what the comparison needs: it takes token ids, and streams the requested number of tokens,
decoded greedily.
"""

import asyncio
import ctypes
import json
import mmap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import click
import torch
from aiohttp import web
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.utils.logging import disable_progress_bar

from control_plane.autoscaling.process_memory import bound_product_caches
from control_plane.http import serving
from control_plane.signals import serve_until_signal

PAGE_TOKENS = 16
MAX_BATCH_TOKENS = 512
"""Tokens of a step, the same as the control plane's default."""
NO_TOKEN = -1
"""The token that ends a sequence: none, so that each answer has the requested length."""


class ReferenceServer:
    """Answers completion requests from one model."""

    def __init__(self, manager: ContinuousBatchingManager) -> None:
        self._manager = manager
        self._numbers = count()

    def app(self) -> web.Application:
        """The application, with its only route."""
        app = web.Application()
        app.router.add_post("/v1/completions", self.complete)
        return app

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Stream one event for each token."""
        body = await request.json()
        number, wanted = f"cmpl-{next(self._numbers)}", body["max_tokens"]
        outputs: asyncio.Queue[Any] = asyncio.Queue()
        self._manager.register_result_handler(number, outputs.put_nowait)
        self._manager.add_request(
            body["prompt"], number, max_new_tokens=wanted, streaming=True, eos_token_id=NO_TOKEN
        )
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        sent = 0
        try:
            while sent < wanted:
                output = await outputs.get()
                if output.error:
                    await answer.write(_event({"error": {"message": output.error}}))
                    break
                for token in output.generated_tokens[sent:]:
                    choice = {"index": 0, "text": "", "token_ids": [token]}
                    await answer.write(_event({"id": number, "choices": [choice]}))
                sent = len(output.generated_tokens)
        finally:
            if sent < wanted:
                self._manager.cancel_request(number)
        await answer.write(b"data: [DONE]\n\n")
        return answer


def drop_mapped_weights(suffix: str = ".safetensors") -> None:
    """Drop the pages of mapped weights that have been read. Pages that are needed again are read again.

    transformers copies experts into new tensors. The pages that they came from stay mapped, and would count
    as this process's memory, although the kernel can drop them at any time.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(suffix):
            start, end = (int(address, 16) for address in line.split(" ", 1)[0].split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _event(value: object) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


@asynccontextmanager
async def _batching(model_folder: Path, cache_tokens: int) -> AsyncIterator[ContinuousBatchingManager]:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="auto", attn_implementation="sdpa")
    manager = model.init_continuous_batching(
        GenerationConfig(do_sample=False, eos_token_id=NO_TOKEN),  # type: ignore[no-untyped-call]
        ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=-(-cache_tokens // PAGE_TOKENS),
            max_batch_tokens=MAX_BATCH_TOKENS,
            allow_block_sharing=False,
        ),
    )
    drop_mapped_weights()
    manager.start()
    try:
        yield manager
    finally:
        await asyncio.to_thread(manager.stop, block=True)


@asynccontextmanager
async def reference_server(model_folder: Path, port: int, cache_tokens: int) -> AsyncIterator[str]:
    """Serve until the end of the context. Yields the address."""
    async with (
        _batching(model_folder, cache_tokens) as manager,
        serving(ReferenceServer(manager).app(), "127.0.0.1", port) as url,
    ):
        yield str(url).rstrip("/")


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--port", default=0, show_default=True, help="Port; 0 takes a free one.")
@click.option("--threads", type=click.IntRange(1), required=True, help="Threads of torch.")
@click.option(
    "--cache-tokens", type=click.IntRange(1), required=True, help="Size of the KV cache, in tokens."
)
def main(model: Path, port: int, threads: int, cache_tokens: int) -> None:
    """Serve the unsplit MODEL in transformers."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    bound_product_caches()
    torch.set_num_threads(threads)
    serve_until_signal("serving", reference_server(model, port, cache_tokens))


if __name__ == "__main__":
    main()

"""A server without API keys, with access to its metrics and its processes."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from bench.support import requests
from bench.support.process_tree import ProcessTree
from bench.support.scrape import Scrape


@dataclass(frozen=True)
class OpenServer:
    """Sends requests that are sampled at temperature 1."""

    client: aiohttp.ClientSession
    url: str
    vocab_size: int
    tree: ProcessTree

    async def ask(
        self,
        tenant: str,
        prompt_tokens: int,
        output_tokens: int,
        seed: int,
        on_token: Callable[[], None] = lambda: None,
    ) -> requests.StreamTiming:
        """Send one request. The seed determines its prompt and its sampling."""
        prompt = requests.random_prompt(prompt_tokens, seed, self.vocab_size)
        return await requests.stream(
            self.client, self.url, None, prompt, output_tokens, on_token, user=tenant, seed=seed
        )

    async def metrics(self) -> Scrape:
        """The server's current metrics."""
        return await Scrape.now(self.client, self.url)

    async def disk_bytes(self) -> int:
        """Bytes that all its processes have read from disk so far."""
        return await asyncio.to_thread(self.tree.read_bytes)

"""A server that serves without keys, and the process tree that it is."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from bench.support import requests
from bench.support.process_tree import ProcessTree
from bench.support.scrape import Scrape


@dataclass(frozen=True)
class OpenServer:
    """What is asked of it, is sampled at temperature 1."""

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
        """One request, whose prompt and answer follow from the seed."""
        prompt = requests.random_prompt(prompt_tokens, seed, self.vocab_size)
        return await requests.stream(
            self.client, self.url, None, prompt, output_tokens, on_token, user=tenant, seed=seed
        )

    async def metrics(self) -> Scrape:
        """What it counts."""
        return await Scrape.now(self.client, self.url)

    async def disk_bytes(self) -> int:
        """What all its processes have had read from disk."""
        return await asyncio.to_thread(self.tree.read_bytes)

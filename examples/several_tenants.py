"""Several tenants ask at the same time: `python examples/several_tenants.py [KEY ...]`.

With keys, each is one tenant's (`faasmoe tenants add NAME` prints one). Without, the server must run with
--open, and the field `user` names the tenants.
"""

import asyncio
import os
import sys

from openai import AsyncOpenAI

URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
NAMES = ("acme", "globex", "initech")


async def ask(name: str, key: str = "none") -> str:
    """One tenant's question, and what its answer cost."""
    async with AsyncOpenAI(base_url=URL, api_key=key) as client:
        model = (await client.models.list()).data[0].id
        # The server takes the tenant from the key, and without a valid one from `user`.
        answer = await client.completions.create(
            model=model, prompt=f"{name} asks:", max_tokens=16, user=name
        )
    assert answer.usage is not None
    cost = (answer.usage.model_extra or {})["experts"]
    return f"{name}: {answer.usage.completion_tokens} tokens, {cost['invocations']:.1f} calls of functions"


async def main() -> None:
    tenants = [(f"tenant-{number}", key) for number, key in enumerate(sys.argv[1:], 1)]
    questions = [ask(*tenant) for tenant in tenants] or [ask(name) for name in NAMES]
    for line in await asyncio.gather(*questions):
        print(line)


if __name__ == "__main__":
    asyncio.run(main())

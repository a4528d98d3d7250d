"""The bodies of the HTTP API's requests, sent to a whole system: control plane, gateway and functions."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from yarl import URL

from bench.robustness.fuzz.support.json_mutation import mutated_json
from bench.robustness.fuzz.support.servers import ask, entered
from bench.robustness.fuzz.support.target import Target
from bench.support import processes
from control_plane.faas.connection import Address

_GENERATION = {"max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 7, "n": 2}
_EXAMPLES: Mapping[str, list[Any]] = {
    "/v1/chat/completions": [
        {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2},
        {
            "model": "bf16",
            "messages": [
                {"role": "system", "content": "be brief", "name": "x"},
                {"role": "user", "content": [{"type": "text", "text": "hello"}]},
            ],
            **_GENERATION,
            "logprobs": True,
            "top_logprobs": 2,
            "stop": ["ab", "c"],
            "user": "someone",
            "response_format": {"type": "text"},
        },
        {
            "messages": [{"role": "user", "content": "hello"}],
            "max_completion_tokens": 2,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        },
    ],
    "/v1/completions": [
        {"prompt": "hello", "max_tokens": 2},
        {"prompt": ["hello", "you"], **_GENERATION, "logprobs": 2, "echo": True, "stop": "x", "best_of": 2},
        {"prompt": [[1, 2, 3], [4]], "max_tokens": 2, "stream": True, "repetition_penalty": 1.1},
        {"prompt": [1, 2, 3], "max_tokens": 0, "echo": True, "logit_bias": {}, "return_token_ids": True},
    ],
    "/tokenize": [
        {"prompt": "hello", "add_special_tokens": True},
        {"messages": [{"role": "user", "content": "hello"}], "add_generation_prompt": True},
    ],
    "/detokenize": [{"tokens": [104, 101, 108, 108, 111]}],
}


@contextmanager
def api(folder: Path) -> Iterator[Target]:
    """`faasmoe up`, over HTTP."""
    with entered(processes.up(folder / "bf16", {"kv_cache_mb": 4, "threads": 1})) as (_, address):
        url = URL(address)
        peer = Address(url.host or "", url.port or 0)
        yield Target(make, lambda data: ask(peer, data))


def make(random: Random) -> bytes:
    """A request whose body is mutated."""
    path = random.choice(list(_EXAMPLES))
    return request("POST", path, mutated_json(random.choice(_EXAMPLES[path]), random))


def request(method: str, target: str, body: bytes) -> bytes:
    """A request, after which the server is to close the connection."""
    head = (
        f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body

"""A server obeys its checkpoint: how answers end, how they are sampled, and how long they may be."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from control_plane.partition.partitioner import partition
from tests.support.api.api_server import COMPLETION, ApiClient, serving
from tests.support.models.tiny_chat_model import CONTEXT_LENGTH, END, GRANULARITY, NAME

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
HELLO: Any = {"messages": [{"role": "user", "content": "the cat"}], "temperature": 0}


@pytest.fixture
def checkpoint(chat_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(chat_checkpoint, tmp_path / NAME))


def change(path: Path, **fields: Any) -> None:
    """Change fields of a JSON file, or remove them with `...`."""
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


@contextmanager
def served(checkpoint: Path, **config: Any) -> Iterator[ApiClient]:
    folder = checkpoint.parent / "partition"
    partition(checkpoint, folder, granularity=GRANULARITY)
    with serving(folder, checkpoint.parent / "db", open=True, **config) as api:
        yield api


def test_an_answer_ends_where_the_template_ends_it(checkpoint: Path, tokenizer: Any) -> None:
    """No file names an end token, and the tokenizer has none: only the template shows it."""
    (checkpoint / "generation_config.json").unlink()
    change(checkpoint / "config.json", eos_token_id=...)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (checkpoint / name).exists():
            change(checkpoint / name, eos_token=...)
    weights = load_file(checkpoint / "model.safetensors")
    # The same logit as the first token of the answer, and a bit: after that token comes the end.
    prompt = tokenizer.apply_chat_template(HELLO["messages"], add_generation_prompt=True, return_dict=False)
    with served(checkpoint) as api:
        first = api.answer("POST", CHAT, {**HELLO, "max_tokens": 8, "return_token_ids": True}).json
        answer = first["choices"][0]
        assert (answer["finish_reason"], len(answer["token_ids"])) == ("length", 8)
    head = weights["lm_head.weight"]
    head[tokenizer.convert_tokens_to_ids(END)] = 2 * head[answer["token_ids"][0]]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(checkpoint.parent / "partition")
    with served(checkpoint) as api:
        answer = api.answer("POST", CHAT, {**HELLO, "max_tokens": 8, "return_token_ids": True}).json
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"] == {**answer["usage"], "prompt_tokens": len(prompt), "completion_tokens": 1}


@pytest.mark.parametrize("source", ["model", "none"])
def test_what_a_request_does_not_name_is_the_model_s(
    checkpoint: Path, expected: Callable[[list[int], int], str], tokenizer: Any, source: str
) -> None:
    """With top_k 1, every answer is the greedy one."""
    change(checkpoint / "generation_config.json", top_k=1, temperature=5.0)
    greedy = expected(tokenizer.encode("the cat"), 12)
    ask = {"prompt": "the cat", "max_tokens": 12, "seed": 1}
    with served(checkpoint, sampling_defaults=source) as api:
        text = api.answer("POST", COMPLETION, ask).json["choices"][0]["text"]
        assert (text == greedy) == (source == "model")
        named = {**ask, "top_k": 0, "temperature": 1.0}
        assert api.answer("POST", COMPLETION, named).json["choices"][0]["text"] != greedy


def test_a_scaled_context_is_as_long_as_its_config_says(checkpoint: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": CONTEXT_LENGTH}
    change(checkpoint / "config.json", rope_parameters={**rope, "rope_theta": 10000.0})
    with served(checkpoint, kv_cache_mb=64) as api:
        fits = {"prompt": [5] * (CONTEXT_LENGTH + 10), "max_tokens": 2}
        assert api.answer("POST", COMPLETION, fits).status == 200
        refused = api.answer("POST", COMPLETION, {**fits, "prompt": [5] * (2 * CONTEXT_LENGTH)})
        assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded")

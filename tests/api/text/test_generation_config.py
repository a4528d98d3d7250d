"""End tokens and sampling defaults are those that the checkpoint's files name."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from control_plane.api.text.codec import TextCodec
from control_plane.api.text.generation_config import end_tokens, named_end_tokens, sampling_defaults
from control_plane.api.text.prompts import PromptEncoder
from control_plane.api.text.request import Sampling, SamplingDefaults
from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.stored_tokenizer import ModelTokenizer
from tests.support.gateways.echo_gateway import asynchronous
from tests.support.paths import DEMO_MODEL


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("generation_config", "config", "expected"),
    [
        ({"eos_token_id": 5}, {"eos_token_id": 2}, {2, 5}),
        ({"eos_token_id": [5, 6]}, {"eos_token_id": [2, 5]}, {2, 5, 6}),
        ({}, {"eos_token_id": 2}, {2}),
        ({"eos_token_id": None}, {"eos_token_id": None}, set()),
        ({"eos_token_id": 5}, {}, {5}),
        # OLMoE's own default would be 50279.
        ({}, {"model_type": "olmoe"}, set()),
    ],
)
def test_end_tokens_in_files(
    generation_config: dict[str, Any], config: dict[str, Any], expected: set[int], tmp_path: Path
) -> None:
    write(tmp_path, generation_config=generation_config, config=config)
    assert named_end_tokens(tmp_path) == expected


def test_no_files(tmp_path: Path) -> None:
    assert named_end_tokens(tmp_path) == frozenset()
    assert sampling_defaults(tmp_path) == SamplingDefaults()


@asynchronous
async def test_end_tokens_of_the_tokenizer_and_of_the_template(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No config names one; an id that the model does not have is left out."""
    caplog.set_level(logging.INFO)
    tokenizer: Any = AutoTokenizer.from_pretrained(DEMO_MODEL)
    end, other = (tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|im_start|>"))
    tokenizer.eos_token = "<|im_start|>"
    codec = TextCodec(ModelTokenizer.of(tokenizer), len(tokenizer))
    write(tmp_path, generation_config={"eos_token_id": 1 << 30})
    async with PromptEncoder.running(codec, workers=1) as prompts:
        assert end_tokens(tmp_path, codec, prompts) == {end, other}
    assert f"answers end with '<|im_start|>' ({other}), '<|im_end|>' ({end})" in caplog.text


def test_sampling_defaults_are_those_of_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Like vLLM, whatever `do_sample` says."""
    caplog.set_level(logging.INFO)
    named: dict[str, Any] = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    generation_config: Any = GenerationConfig
    generation_config(do_sample=True, **named).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    write(tmp_path, generation_config={**written, "do_sample": False, "min_p": 0.1, "presence_penalty": 1.5})
    defaults = sampling_defaults(tmp_path)
    assert defaults == SamplingDefaults(**named, min_p=0.1, presence_penalty=1.5)
    assert Sampling(temperature=0.0, top_k=0).filled(defaults)["top_k"] == 0
    assert (
        "sampled as generation_config.json says, with temperature 0.7, top_p 0.8, top_k 20, min_p 0.1, "
        "repetition_penalty 1.05, presence_penalty 1.5; --sampling-defaults none turns that off"
    ) in caplog.text


@pytest.mark.parametrize("named", [{}, {"temperature": None}, {"eos_token_id": 5, "max_length": 20}])
def test_a_file_that_says_nothing(
    named: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert sampling_defaults(write(tmp_path, generation_config=named)) == SamplingDefaults()
    assert caplog.text == ""


def test_all_tokens_have_two_spellings(tmp_path: Path) -> None:
    assert sampling_defaults(write(tmp_path, generation_config={"top_k": -1})).top_k == 0


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        ({"temperature": -1}, "temperature: must be a number from 0 to 3.4e"),
        ({"temperature": "1"}, "temperature: must be a number from 0 to 3.4e"),
        ({"top_p": 0}, "top_p: must be a number above 0, up to 1"),
        ({"top_k": 1.5}, "top_k: must be a whole number; 0 or -1 for all tokens"),
        ({"min_p": 2}, "min_p: must be a number from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty: must be a number from 1e-06 to 3.4e"),
        ({"repetition_penalty": 1e-38}, "repetition_penalty: must be a number from 1e-06 to 3.4e"),
        ({"temperature": 1e39}, "temperature: must be a number from 0 to 3.4e"),
        ({"frequency_penalty": 3}, "frequency_penalty: must be a number from -2 to 2"),
        ([], "is not a JSON object"),
        ({"temperature": float("nan")}, "temperature: must be a number from 0 to 3.4e"),
    ],
    ids=range(11),
)
def test_sampling_that_makes_no_sense(named: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match=problem) as caught:
        sampling_defaults(write(tmp_path, generation_config=named))
    assert str(caught.value).startswith(str(tmp_path / "generation_config.json"))


@pytest.mark.parametrize(
    "data", [b"[]", b'{"a":' * 100_000, b'{"eos_token_id": [[1]]}', b'{"eos_token_id": true}', b"\xff"]
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_hostile_files_are_refused_in_one_line(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PartitionError, match=rf"^\S+/{name}[^\n]*$"):
        named_end_tokens(tmp_path)

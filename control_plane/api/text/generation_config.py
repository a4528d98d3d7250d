"""Reads a checkpoint's settings for answers: the tokens that end them, and the defaults for sampling.

Its two files are read directly: transformers would add end tokens of other models of the same architecture,
and default values of its own.
"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct, to_builtins

from control_plane.api.text.codec import TextCodec
from control_plane.api.text.prompts import PromptEncoder
from control_plane.api.text.request import SamplingDefaults
from control_plane.errors import PartitionError
from control_plane.files import read_json_object
from control_plane.partition.checkpoint.reader import CONFIG_FILE, MAX_CONFIG_NBYTES
from control_plane.validation import Invalid, T, convert

logger = logging.getLogger(__name__)

GENERATION_CONFIG_FILE = "generation_config.json"

_LARGEST = 3.4e38
"""Tokens are sampled in float32; larger numbers, and factors below 1e-6, can leave its range."""
_Factor = Annotated[float, Meta(ge=1e-6, le=_LARGEST, description="a number from 1e-06 to 3.4e+38")]
_Share = Annotated[float, Meta(ge=0, le=1, description="a number from 0 to 1")]
_TopP = Annotated[float, Meta(gt=0, le=1, description="a number above 0, up to 1")]
_Temperature = Annotated[float, Meta(ge=0, le=_LARGEST, description="a number from 0 to 3.4e+38")]
_Offset = Annotated[float, Meta(ge=-2, le=2, description="a number from -2 to 2")]
_TopK = Annotated[int, Meta(ge=-1, le=2**31, description="a whole number; 0 or -1 for all tokens")]


class _EndTokens(Struct):
    eos_token_id: int | list[int] | None = None


class _Sampling(Struct, omit_defaults=True):
    """The fields of generation_config.json about sampling.

    `do_sample` is ignored: as in vLLM, a request for greedy answers has `temperature: 0`.
    """

    temperature: _Temperature | None = None
    top_p: _TopP | None = None
    top_k: _TopK | None = None
    min_p: _Share | None = None
    repetition_penalty: _Factor | None = None
    frequency_penalty: _Offset | None = None
    presence_penalty: _Offset | None = None


def sampling_defaults(partition: Path) -> SamplingDefaults:
    """The sampling settings in generation_config.json; logs them. Raises `PartitionError`."""
    named = to_builtins(_read(partition / GENERATION_CONFIG_FILE, _Sampling))
    if "top_k" in named:
        named["top_k"] = max(named["top_k"], 0)
    defaults = SamplingDefaults(**named)
    if defaults != SamplingDefaults():
        values = ", ".join(f"{name} {value:g}" for name, value in asdict(defaults).items() if name in named)
        logger.info(
            "requests that do not say otherwise are sampled as %s says, with %s; "
            "--sampling-defaults none turns that off",
            GENERATION_CONFIG_FILE,
            values,
        )
    return defaults


def end_tokens(partition: Path, codec: TextCodec, prompts: PromptEncoder) -> frozenset[int]:
    """The tokens that end an answer; logs them. Raises `PartitionError`.

    They are those of the checkpoint's two configs, the tokenizer's end token, and the tokens that its chat
    templates write after an assistant's message.
    """
    found = named_end_tokens(partition) | codec.eos_ids | prompts.end_of_turn_ids
    known = frozenset(token_id for token_id in found if 0 <= token_id < codec.vocab_size)
    names = ", ".join(f"{codec.token_text(token_id)!r} ({token_id})" for token_id in sorted(known))
    logger.info("answers end with %s", names or "no token of their own")
    return known


def named_end_tokens(partition: Path) -> frozenset[int]:
    """The end tokens in generation_config.json and config.json. Raises `PartitionError`."""
    found: set[int] = set()
    for file in (GENERATION_CONFIG_FILE, CONFIG_FILE):
        named = _read(partition / file, _EndTokens).eos_token_id
        found.update([named] if isinstance(named, int) else named or [])
    return frozenset(found)


def _read(path: Path, kind: type[T]) -> T:
    """Some fields of a JSON file; the defaults if there is no such file. Raises `PartitionError`."""
    if not path.exists():
        return kind()
    try:
        return convert(read_json_object(path, MAX_CONFIG_NBYTES), kind)
    except Invalid as error:
        raise PartitionError(f"{path}: {error}") from error

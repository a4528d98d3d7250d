"""Writes GGUF files, tensor by tensor."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.support.gguf.model import GgufModel
from control_plane.errors import ConfigError

_NORMAL_TOKEN = 1
"""llama.cpp's type of a token that is neither special nor a byte."""
_GENERAL = ("tokenizer.", "general.", "split.")
"""The starts of keys that are not the model's own."""


def write(model: GgufModel, path: Path) -> None:
    """Write the file, or nothing if that fails. Raises `ConfigError` without the package gguf."""
    try:
        gguf = importlib.import_module("gguf")
    except ImportError as error:
        raise ConfigError("a model for llama.cpp needs the package gguf (faasmoe's extra bench)") from error
    writer = gguf.GGUFWriter(None, model.architecture)
    add_metadata(writer, model.architecture, model.metadata)
    _add_vocabulary(writer, model.vocabulary)
    for tensor in model.tensors:
        kind = gguf.GGMLQuantizationType[tensor.kind]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, kind)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (file,) = writer.fout
        for tensor in model.tensors:
            writer.write_padding(file, file.tell())
            for values in tensor.chunks():
                values.tofile(file)
        writer.write_padding(file, file.tell())
        writer.close()
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def add_metadata(writer: Any, architecture: str, metadata: Mapping[str, Any]) -> None:
    """Add metadata to a `gguf.GGUFWriter`. Keys are without the architecture's name."""
    for key, value in metadata.items():
        key = key if key.startswith(_GENERAL) else f"{architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def _add_vocabulary(writer: Any, size: int) -> None:
    """llama.cpp's server turns each token into text, so each needs one."""
    tokens = [f"<{token}>" for token in range(size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([_NORMAL_TOKEN] * size)

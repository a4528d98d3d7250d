"""The class of a checkpoint's language model in transformers, and an instance without memory."""

import reprlib
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

from control_plane.architecture.sizes import check_sizes
from control_plane.errors import UnsupportedModel
from control_plane.partition.checkpoint.rope import check_rope


def language_config(document: Mapping[str, Any]) -> PretrainedConfig:
    """The config of the language model, from the object in config.json.

    A model of several modalities has it within its own. Raises UnsupportedModel for one that transformers
    does not know, or that is no causal language model.
    """
    model_type = document.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise UnsupportedModel(f"model type {reprlib.repr(model_type)} is not known to transformers")
    check_sizes(document)
    inner = document.get("text_config")
    for part in (document, inner if isinstance(inner, dict) else {}):
        check_rope(part)
    # Weights are dequantised as they are read.
    own = {name: _decoded(value) for name, value in document.items() if name != "quantization_config"}
    config: PretrainedConfig = CONFIG_MAPPING[model_type].from_dict(own)
    text = config.get_text_config(decoder=True)
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModel(f"transformers has no language model of type {model_type!r}")
    if text is not config and document.get("tie_word_embeddings") is not None:
        text.tie_word_embeddings = document["tie_word_embeddings"]
    if text.to_dict().get("head_dim", 0) is None:
        # It may be null for Mixtral, and transformers needs a number for scaled rotary embeddings.
        text.head_dim = text.hidden_size // text.num_attention_heads
    return text


def model_class(config: PretrainedConfig) -> Any:
    """The class of the config's causal language model."""
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model in bfloat16 on the meta device: it has shapes and dtypes, but no values.

    Parameters that are float32 here, are so by the family's own will.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model: Any = model_class(config)(config)
    finally:
        torch.set_default_dtype(before)
    empty: PreTrainedModel = model.eval()
    return empty


def _decoded(value: Any) -> Any:
    """A value with infinite numbers in place of the objects that transformers writes for them."""
    match value:
        case {"__float__": "Infinity" | "-Infinity" | "NaN" as text, **others} if not others:
            return float(text)
        case dict():
            return {name: _decoded(each) for name, each in value.items()}
        case list():
            return [_decoded(each) for each in value]
    return value

"""Loads the dense part of a model, which every token needs. The routed experts are never allocated."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.monkey_patching import register_patch_mapping, unregister_patch_mapping
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from control_plane.engine.experts.dispatcher import Dispatcher
from control_plane.engine.experts.remote_experts import RemoteExperts
from control_plane.engine.model import attention
from control_plane.engine.model.layers import check_packed, replace_packed
from control_plane.engine.model.replacements import REPLACEMENTS
from control_plane.engine.model.stored_embedding import StoredEmbedding
from control_plane.errors import FaaSMoEError, PartitionError, UnsupportedModel
from control_plane.partition.dense import PACKED, PackedMatrix, packed_matrices
from control_plane.partition.manifest import Manifest

EMBEDDING = "model.embed_tokens.weight"
MAX_TOKENIZER_BYTES = 256 << 20
"""The largest file of a tokenizer. Vocabularies of 256,000 tokens take 35 MB."""
_MAX_ERROR = 300
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")

_TORCH_DTYPE = {"f32": torch.float32, "bf16": torch.bfloat16}


def load_model(partition: Path, manifest: Manifest) -> PreTrainedModel:
    """transformers' model with ragged attention and remote experts. Raises `PartitionError`.

    The weights are mapped from the file: they are read when they are used, and shared between processes.
    `attach_experts` has to follow before the model can run.
    """
    manifest.verify_dense(partition)
    attention.register()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
    with _refused_by_transformers(f"the model in {partition}"):
        config = AutoConfig.from_pretrained(partition)
        if getattr(config, "head_dim", 0) is None:
            # It may be null for Mixtral, and transformers needs a number for scaled rotary embeddings.
            config.head_dim = config.hidden_size // config.num_attention_heads
        state_dict, matrices = _read_dense(partition / manifest.dense.file, manifest.dtype)
        with _patched(manifest.model_type):
            model, report = _model_class(config, state_dict, matrices).from_pretrained(
                None,
                config=copy.deepcopy(config),
                state_dict=state_dict,
                dtype=_TORCH_DTYPE[manifest.dtype],
                attn_implementation=attention.NO_MASK,
                output_loading_info=True,
            )
    if missing := sorted(report["missing_keys"]):
        raise PartitionError(f"{partition / manifest.dense.file} lacks {', '.join(missing)}")
    check_packed(model, matrices)
    if not model.config.tie_word_embeddings:
        model.model.embed_tokens = StoredEmbedding(partition / manifest.dense.file, EMBEDDING)
    for layer in manifest.moe_layers:
        if not isinstance(model.model.layers[layer].mlp.experts, RemoteExperts):
            raise UnsupportedModel(f"layer {layer} of {manifest.model_type} kept its experts")
    loaded: PreTrainedModel = model.eval()
    return loaded


def attach_experts(model: PreTrainedModel, manifest: Manifest, dispatcher: Dispatcher) -> None:
    """Have the loaded model's MoE layers send their rows through the dispatcher.

    This is a step after loading because transformers builds the modules, and because what the dispatcher
    prefetches with is made from the model's own routers.
    """
    for layer in manifest.moe_layers:
        model.model.layers[layer].mlp.experts.attach(layer, dispatcher)


def load_tokenizer(partition: Path) -> PreTrainedTokenizerBase:
    """The model's tokenizer, which the partition has from the checkpoint.

    Raises `PartitionError`, whatever the files hold: a tokenizer's panics are not Exceptions.
    """
    # Without these files, transformers would make up an empty tokenizer instead of failing.
    if not any((partition / name).exists() for name in TOKENIZER_FILES):
        raise PartitionError(f"{partition} has no tokenizer: {' or '.join(TOKENIZER_FILES)}")
    with _refused_by_transformers(f"the tokenizer in {partition}"):
        _check_sizes(partition)
        return AutoTokenizer.from_pretrained(partition)


def _check_sizes(partition: Path) -> None:
    """Raises ValueError for a file that would fill the memory when it is parsed."""
    for name in (*TOKENIZER_FILES, "merges.txt", "added_tokens.json", "special_tokens_map.json"):
        path = partition / name
        if path.exists() and path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise ValueError(f"{name} has more than {MAX_TOKENIZER_BYTES} bytes")


@contextmanager
def _refused_by_transformers(what: str) -> Iterator[None]:
    """Turn an error of transformers into a `PartitionError`: files that it does not expect can raise any."""
    try:
        yield
    except (FaaSMoEError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # A tokenizer's panics are not Exceptions.
        problem = f"{type(error).__name__}: {_in_one_line(error)[:_MAX_ERROR]}"
        raise PartitionError(f"cannot load {what}: {problem}") from error


def _read_dense(path: Path, dtype: str) -> tuple[dict[str, torch.Tensor], dict[str, PackedMatrix]]:
    """The tensors of the dense part, mapped from the file, and what its packed matrices are."""
    with safe_open(path, "pt") as file:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, packed_matrices(file.metadata() or {}, dtype)


def _model_class(
    config: PretrainedConfig, state_dict: Iterable[str], matrices: Mapping[str, PackedMatrix]
) -> Any:
    """A subclass of the model's own class, with our modules in place of those whose weights are packed.

    It replaces them while it is built, when transformers has allocated no weights yet.
    """
    # transformers' Auto classes accept no state dict; the model's own class does.
    own: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    modules = [name.removesuffix(PACKED) for name in state_dict if name.endswith(PACKED)]

    class PackedModel(own):  # type: ignore[misc]
        def __init__(self, config: PretrainedConfig) -> None:
            super().__init__(config)
            # This must not raise: transformers' own patches would then stay in place.
            replace_packed(self, modules, matrices)

    return PackedModel


@contextmanager
def _patched(model_type: str) -> Iterator[None]:
    """Have transformers build our modules. Its registry is global, so undo the change at the end."""
    replacements = REPLACEMENTS[model_type]
    register_patch_mapping(replacements, overwrite=True)
    try:
        yield
    finally:
        unregister_patch_mapping(list(replacements))


def _in_one_line(error: BaseException) -> str:
    """The error's message without line breaks: transformers' messages can be paragraphs."""
    return " ".join(str(error).split())

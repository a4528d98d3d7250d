"""Loads the dense part of a model into transformers' modules. The routed experts are never allocated."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.monkey_patching import register_patch_mapping, unregister_patch_mapping
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from control_plane.autoscaling.process_memory import bound_product_caches
from control_plane.engine.model.dense_file import DenseFile
from control_plane.engine.model.reference import attention
from control_plane.engine.model.reference.layers import EmbeddingModule, check_packed, replace_packed
from control_plane.engine.model.reference.remote_experts import RemoteExperts
from control_plane.engine.model.reference.replacements import REPLACEMENTS
from control_plane.engine.model.stored_embedding import StoredEmbedding
from control_plane.errors import PartitionError, UnsupportedModel
from control_plane.partition.checkpoint.untrusted import loading
from control_plane.partition.dense import PACKED, PackedMatrix, packed_matrices
from control_plane.partition.manifest import Manifest

_TORCH_DTYPE = {"f32": torch.float32, "bf16": torch.bfloat16}


def load_transformers(partition: Path, manifest: Manifest) -> PreTrainedModel:
    """transformers' model with ragged attention and remote experts. Raises `PartitionError`.

    The weights are mapped from the file: they are read when they are used, and shared between processes.
    The experts have to be attached before the model can run.
    """
    bound_product_caches()
    attention.register()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
    with loading(f"the model in {partition}"):
        config = _load_config(partition)
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
    stored = StoredEmbedding(DenseFile(partition / manifest.dense.file, manifest.dtype))
    model.model.embed_tokens = EmbeddingModule(stored)
    for layer in manifest.moe_layers:
        if not isinstance(model.model.layers[layer].mlp.experts, RemoteExperts):
            raise UnsupportedModel(f"layer {layer} of {manifest.model_type} kept its experts")
    loaded: PreTrainedModel = model.eval()
    return loaded


def _load_config(partition: Path) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.from_pretrained(partition)
    # A partition's head has weights of its own.
    config.tie_word_embeddings = False
    if getattr(config, "head_dim", 0) is None:
        # It may be null for Mixtral, and transformers needs a number for scaled rotary embeddings.
        config.head_dim = config.hidden_size // config.num_attention_heads
    return config


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

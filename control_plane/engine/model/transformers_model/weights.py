"""Loads the dense part of a model into its family's own modules. The routed experts are never allocated."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from control_plane.autoscaling.process_memory import bound_product_caches
from control_plane.engine.model.dense_file import DenseFile
from control_plane.engine.model.stored_embedding import StoredEmbedding
from control_plane.engine.model.transformers_model.embedding import keep_in_file
from control_plane.engine.model.transformers_model.experts import experts_modules
from control_plane.engine.model.transformers_model.layers import check_packed, replace_packed
from control_plane.errors import PartitionError, UnsupportedModel
from control_plane.partition.checkpoint.untrusted import loading
from control_plane.partition.dense import PACKED, PackedMatrix, packed_matrices

TORCH_DTYPE: Mapping[str, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16}


def load_config(partition: Path) -> PretrainedConfig:
    """The config of the model that computes text. Raises `PartitionError`."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
    with loading(f"the model in {partition}"):
        config: PretrainedConfig = AutoConfig.from_pretrained(partition).get_text_config(decoder=True)
    # A partition's head has weights of its own.
    config.tie_word_embeddings = False
    if vars(config).get("head_dim", 0) is None:
        # It may be null for Mixtral, and transformers needs a number for scaled rotary embeddings.
        config.head_dim = config.hidden_size // config.num_attention_heads
    return config


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """transformers' class for generating text. Raises `UnsupportedModel` for a family without one."""
    try:
        own: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise UnsupportedModel(f"transformers generates no text with {config.model_type}") from None
    model: type[PreTrainedModel] = own
    return model


def load_module(
    partition: Path, dense: Path, config: PretrainedConfig, dtype: str, attention: str | None
) -> PreTrainedModel:
    """The model in eval mode, without its experts' parameters.

    `dense` is the dense file, with the names of the model's own `state_dict`, and `dtype` that of the
    activations; the file says each tensor's own. `attention` is a name in transformers' interface, None for
    the family's default. Raises `PartitionError`.

    The weights are mapped from the file: they are read when they are used, and shared between processes.
    """
    bound_product_caches()
    with loading(f"the model in {partition}"):
        tensors, matrices = _read_dense(dense, dtype)
        modules = [name.removesuffix(PACKED) for name in tensors if name.endswith(PACKED)]
        model: Any = _empty(config, TORCH_DTYPE[dtype], attention, modules, matrices)
        experts = experts_modules(model).values()
        _assign(model, tensors, experts, dense)
        check_packed(model, matrices)
        _compute_buffers(model)
        for module in experts:
            module._parameters.clear()
        _keep_embedding_in_file(model, DenseFile(dense, dtype))
    loaded: PreTrainedModel = model.eval()
    return loaded


def _read_dense(path: Path, dtype: str) -> tuple[dict[str, torch.Tensor], dict[str, PackedMatrix]]:
    """The tensors of the dense part, mapped from the file, and what its packed matrices are."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        return tensors, packed_matrices(file.metadata() or {}, dtype)


def _empty(
    config: PretrainedConfig,
    dtype: torch.dtype,
    attention: str | None,
    packed: Iterable[str],
    matrices: Mapping[str, PackedMatrix],
) -> PreTrainedModel:
    """The model without any memory, with our modules in place of those whose weights are packed."""
    own: Any = model_class(config)
    config.dtype = dtype
    config._attn_implementation = attention
    with ExitStack() as stack:
        # As transformers' own loading does it: on the meta device.
        for context in own.get_init_context(dtype, False, False, False):
            stack.enter_context(context)
        model: PreTrainedModel = own(config)
        replace_packed(model, packed, matrices)
    return model.requires_grad_(False)


def _assign(
    model: PreTrainedModel, tensors: Mapping[str, torch.Tensor], experts: Iterable[nn.Module], path: Path
) -> None:
    """Make the file's tensors the model's, in the types that they have. Others of the file are left out."""
    own = {id(parameter) for module in experts for parameter in module.parameters(recurse=False)}
    wanted = {name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in own}
    if missing := sorted(wanted - tensors.keys()):
        raise PartitionError(f"{path} lacks {', '.join(missing)}")
    model.load_state_dict({name: tensors[name] for name in wanted}, strict=False, assign=True)


def _compute_buffers(model: Any) -> None:
    """Compute the buffers that are in no file, such as rotary embeddings' frequencies: the family does it."""
    for name, buffer in list(model.named_non_persistent_buffers()):
        parent, _, attribute = name.rpartition(".")
        empty = torch.empty_like(buffer, device="cpu")
        model.get_submodule(parent).register_buffer(attribute, empty, persistent=False)
    for tensor in model.state_dict(keep_vars=True).values():
        # transformers initialises what has not this mark.
        tensor._is_hf_initialized = True
    model.initialize_weights()


def _keep_embedding_in_file(model: PreTrainedModel, file: DenseFile) -> None:
    embedding: Any = model.get_input_embeddings()
    if isinstance(embedding, nn.Embedding):
        names = {module: name for name, module in model.named_modules()}
        keep_in_file(embedding, StoredEmbedding(file, f"{names[embedding]}.weight"))

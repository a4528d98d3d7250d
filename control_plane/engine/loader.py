"""Loads the dense part of a model, which every token needs, and the model's tokenizer."""

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from control_plane.engine.kernels import load_dense_kernel
from control_plane.engine.model.dense_model import DenseModel
from control_plane.engine.model.program_layers import has_program
from control_plane.engine.model.program_model import ProgramModel
from control_plane.engine.model.reference.loader import load_transformers
from control_plane.engine.model.reference.refusal import refused_by_transformers
from control_plane.engine.model.reference.transformers_model import TransformersModel
from control_plane.errors import PartitionError
from control_plane.partition.manifest import Manifest

MAX_TOKENIZER_BYTES = 256 << 20
"""The largest file of a tokenizer. Vocabularies of 256,000 tokens take 35 MB."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_model(partition: Path, manifest: Manifest, threads: int) -> DenseModel:
    """The dense part, computed on up to so many threads. Raises `PartitionError`.

    The weights are mapped from the file: they are read when they are used, and shared between processes.
    A family without layer programs is computed by transformers' modules.
    """
    manifest.verify_dense(partition)
    config = load_config(partition)
    with refused_by_transformers(f"the model in {partition}"):
        if has_program(manifest.model_type):
            return ProgramModel(partition, manifest, config, load_dense_kernel(), threads)
        return TransformersModel(load_transformers(partition, manifest, config), manifest.moe_layers, threads)


def load_config(partition: Path) -> PretrainedConfig:
    """transformers' config of the model. Raises `PartitionError`."""
    with refused_by_transformers(f"the model in {partition}"):
        config: PretrainedConfig = AutoConfig.from_pretrained(partition)
    if getattr(config, "head_dim", 0) is None:
        # It may be null for Mixtral, and transformers needs a number for scaled rotary embeddings.
        config.head_dim = config.hidden_size // config.num_attention_heads
    return config


def load_tokenizer(partition: Path) -> PreTrainedTokenizerBase:
    """The model's tokenizer, which the partition has from the checkpoint.

    Raises `PartitionError`, whatever the files hold: a tokenizer's panics are not Exceptions.
    """
    # Without these files, transformers would make up an empty tokenizer instead of failing.
    if not any((partition / name).exists() for name in TOKENIZER_FILES):
        raise PartitionError(f"{partition} has no tokenizer: {' or '.join(TOKENIZER_FILES)}")
    with refused_by_transformers(f"the tokenizer in {partition}"):
        _check_sizes(partition)
        return AutoTokenizer.from_pretrained(partition)


def _check_sizes(partition: Path) -> None:
    """Raises ValueError for a file that would fill the memory when it is parsed."""
    for name in (*TOKENIZER_FILES, "merges.txt", "added_tokens.json", "special_tokens_map.json"):
        path = partition / name
        if path.exists() and path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise ValueError(f"{name} has more than {MAX_TOKENIZER_BYTES} bytes")

"""Layer programs compute what transformers' modules do, and a row by itself what it is among others."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from control_plane.engine.loader import load_model
from control_plane.engine.model.dense_file import DenseFile
from control_plane.engine.model.dense_model import DenseModel, MemorySize
from control_plane.engine.model.program_model import ProgramModel
from control_plane.engine.scheduling.chunk import Chunk
from control_plane.engine.state.sequence import SamplingParams, Sequence
from control_plane.partition.manifest import Manifest
from control_plane.partition.partitioner import partition
from functions.kernels.activations import as_f32
from functions.kernels.bfloat16 import f32_to_bf16
from tests.support.functions.kernels import worth_a_team
from tests.support.models.checkpoints import FAMILIES, save_checkpoint, tiny_model
from tests.support.models.modules import in_modules

pytestmark = pytest.mark.slow

CASES: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("qwen2_moe", {"mlp_only_layers": [1], "num_attention_heads": 4, "num_key_value_heads": 2}),
    ("qwen3_moe", {"attention_bias": True, "num_attention_heads": 40, "num_key_value_heads": 2}),
    ("mixtral", {"sliding_window": 5}),
    ("olmoe", {"clip_qkv": 0.3, "tie_word_embeddings": True, "norm_topk_prob": True}),
]
TYPES = [("f32", "auto"), ("bf16", "auto"), ("f32", "int8"), ("bf16", "int4")]
LENGTHS = (1, 30, 9)


class Experts:
    """In the place of a dispatcher: experts give the row itself, scaled by their numbers and weights."""

    def __init__(self) -> None:
        self.chosen: list[NDArray[np.int64]] = []

    def begin(self, layer: int, rows: NDArray[Any], index: NDArray[Any], weights: NDArray[Any]) -> "Experts":
        self.chosen.append(np.sort(index))
        values = as_f32(rows) * ((index + 1) * weights).sum(axis=1, keepdims=True, dtype=np.float32)
        self.output = f32_to_bf16(values) if rows.dtype == np.uint16 else values
        return self

    def wait(self) -> NDArray[Any]:
        return self.output


def partitioned(
    folder: Path, family: str, dtype: str, dense_dtype: str, hidden_size: int = 64, **overrides: Any
) -> tuple[Path, Manifest]:
    model = tiny_model(family, hidden_size=hidden_size, initializer_range=0.2, **overrides)
    save_checkpoint(model, folder / "model")
    manifest = partition(folder / "model", folder / "partition", dtype=dtype, dense_dtype=dense_dtype)
    return folder / "partition", manifest


def sequences() -> list[Sequence]:
    random = np.random.default_rng(0)
    tokens = [random.integers(3, 64, length).tolist() for length in LENGTHS]
    return [Sequence("test", "tenant", token_ids, SamplingParams(1)) for token_ids in tokens]


def computed(model: DenseModel, batches: list[list[Chunk]]) -> Iterator[NDArray[Any]]:
    """The hidden states of each batch, one after the other with the same cache."""
    model.attach(Experts())  # type: ignore[arg-type]
    cache = model.new_memory(MemorySize(num_pages=100, num_lanes=8, max_length=128, threads=1))
    for batch in batches:
        for chunk in batch:
            cache.pages.allocate(chunk.sequence, chunk.end)
        yield model.hidden_states(batch, cache)


def whole(each: Sequence) -> Chunk:
    return Chunk(each, 0, len(each.token_ids))


@pytest.mark.parametrize(("dtype", "dense_dtype"), [("f32", "auto"), ("f32", "int8")])
@pytest.mark.parametrize(("family", "overrides"), CASES, ids=str)
def test_hidden_states_are_those_of_transformers_modules(
    family: str, overrides: dict[str, Any], dtype: str, dense_dtype: str, tmp_path: Path
) -> None:
    folder, manifest = partitioned(tmp_path, family, dtype, dense_dtype, **overrides)
    program = load_model(folder, manifest, threads=1)
    assert isinstance(program, ProgramModel)
    reference = in_modules(folder, manifest)
    batch = [whole(each) for each in sequences()]
    (found,), (expected,) = (computed(model, [batch]) for model in (program, reference))
    # int8 rounds activations, and one that is rounded the other way makes a difference of 1 in 127.
    assert np.abs(found - expected).max() < (1e-4 if dense_dtype == "auto" else 0.05)
    np.testing.assert_allclose(program.logits(found), reference.logits(found), atol=1e-4)


@pytest.mark.parametrize(("dtype", "dense_dtype"), TYPES)
@pytest.mark.parametrize(("family", "overrides"), CASES, ids=str)
def test_a_row_depends_neither_on_other_rows_nor_on_chunks(
    family: str, overrides: dict[str, Any], dtype: str, dense_dtype: str, tmp_path: Path
) -> None:
    folder, manifest = partitioned(tmp_path, family, dtype, dense_dtype, **overrides)
    model = load_model(folder, manifest, threads=1)
    batch = [whole(each) for each in sequences()]
    (together,) = computed(model, [batch])
    row = 0
    for each in sequences():
        length = len(each.token_ids)
        cuts = [0, *range(1, length, 7), length] if length > 1 else [0, 1]
        chunks = [[Chunk(each, start, end - start)] for start, end in pairwise(cuts)]
        rows = np.concatenate(list(computed(model, chunks)))
        assert np.array_equal(rows, together[row : row + length])
        row += length


@pytest.mark.parametrize(("dtype", "dense_dtype"), TYPES)
def test_threads_do_not_change_a_bit(dtype: str, dense_dtype: str, tmp_path: Path) -> None:
    """Of a layer with a shared expert, and of one without experts."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "shared_expert_intermediate_size": 256}
    folder, manifest = partitioned(tmp_path, "qwen2_moe", dtype, dense_dtype, mlp_only_layers=[1], **sizes)
    stored = DenseFile(folder / manifest.dense.file, manifest.dtype)
    for modules in ([f"self_attn.{part}_proj" for part in "qkvo"], ["mlp"]):
        nbytes = sum(stored.packed(f"model.layers.1.{module}").nbytes for module in modules)
        assert worth_a_team(sum(LENGTHS) * nbytes)
    batch = [whole(each) for each in sequences()]
    one, three = (load_model(folder, manifest, threads=threads) for threads in (1, 3))
    (expected,), (found,) = (computed(model, [batch]) for model in (one, three))
    assert np.array_equal(found, expected)

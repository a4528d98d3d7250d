"""Profiles are recorded by running prompts, saved, checked when they are loaded, and used by partitions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from control_plane.engine.experts.routing_recorder import RoutingRecorder
from control_plane.errors import ConfigError, PartitionError
from control_plane.offline.profiling import read_prompts
from control_plane.partition.granularity import Granularity
from control_plane.partition.manifest import Manifest
from control_plane.partition.packing import pack
from control_plane.partition.partitioner import partition
from control_plane.partition.profile import Profile
from tests.support.command_line import error_line, faasmoe, usage_error
from tests.support.models.checkpoints import FAMILIES, tiny_model
from tests.support.models.tiny_partition import TinyPartition

pytestmark = pytest.mark.slow

LAYERS, EXPERTS, HIDDEN_SIZE = 3, 5, 24


def random_profile(layers: int = LAYERS, experts: int = EXPERTS, hidden_size: int = HIDDEN_SIZE) -> Profile:
    """A profile of 200 tokens with two experts each, mostly experts with high numbers."""
    random = np.random.default_rng(0)
    weights = np.arange(1, experts + 1) / np.arange(1, experts + 1).sum()
    together = np.zeros((layers, experts, experts), np.int64)
    use = np.zeros((layers, experts), np.int64)
    for layer in range(layers):
        for _ in range(200):
            one, other = random.choice(experts, 2, replace=False, p=weights)
            use[layer, [one, other]] += 1
            together[layer, one, other] += 1
            together[layer, other, one] += 1
    return Profile("tiny", use, together, random.random((layers, hidden_size), np.float32))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_recorder_sees_what_the_experts_get(family: str) -> None:
    model = tiny_model(family, initializer_range=0.5)
    recorder = RoutingRecorder(range(LAYERS), EXPERTS, HIDDEN_SIZE)
    inputs: list[list[torch.Tensor]] = [[] for _ in range(LAYERS)]
    for layer in range(LAYERS):

        def record(experts: Any, arguments: tuple[torch.Tensor, ...], layer: int = layer) -> None:
            rows, index, _ = arguments
            inputs[layer].append(rows.clone())
            recorder(layer, rows.numpy(), index.numpy())

        model.model.layers[layer].mlp.experts.register_forward_pre_hook(record)
    prompts = torch.randint(64, (2, 20), generator=torch.Generator().manual_seed(0))
    logits: list[torch.Tensor] = []
    with torch.inference_mode():
        for prompt in prompts:
            logits += model(input_ids=prompt[None], output_router_logits=True).router_logits
    use = np.zeros((LAYERS, EXPERTS), np.int64)
    together = np.zeros((LAYERS, EXPERTS, EXPERTS), np.int64)
    for number, of_layer in enumerate(logits):
        for row in of_layer.reshape(-1, EXPERTS).topk(2).indices.tolist():
            use[number % LAYERS, row] += 1
            together[number % LAYERS, row, row[::-1]] += 1
    assert (recorder.use == use).all()
    assert (recorder.together == together).all()
    assert use.sum() == 2 * 40 * LAYERS
    squares = torch.stack([torch.cat(rows).square().mean(dim=0) for rows in inputs])
    np.testing.assert_allclose(recorder.input_squares, squares, rtol=1e-5)


def test_the_recorder_counts_no_expert_for_a_row_without() -> None:
    recorder = RoutingRecorder([0], EXPERTS, HIDDEN_SIZE)
    recorder(0, np.ones((2, HIDDEN_SIZE), np.float32), np.array([[1, -1], [-1, -1]]))
    assert recorder.use[0].tolist() == [0, 1, *[0] * (EXPERTS - 2)]


def test_load_returns_the_saved_profile(tmp_path: Path) -> None:
    profile = random_profile()
    profile.save(tmp_path / "p")
    loaded = Profile.load(tmp_path / "p")
    assert loaded.model == "tiny"
    assert (loaded.use == profile.use).all()
    assert (loaded.together == profile.together).all()
    assert (loaded.input_squares == profile.input_squares).all()


def test_the_summary_shows_how_uneven_use_is() -> None:
    use = np.array([[70, 10, 10, 10, 0, 0, 0, 0]])
    lines = list(Profile("m", use, np.zeros((1, 8, 8), np.int64), np.zeros((1, 4), np.float32)).summary())
    assert lines[1].split() == ["0", "80%", "4", "of", "8"]


def arrays() -> dict[str, np.ndarray]:
    profile = random_profile()
    return {"use": profile.use, "together": profile.together, "input_squares": profile.input_squares}


def negative(tensors: dict[str, np.ndarray]) -> None:
    tensors["use"][0, 0] = -1


def lopsided(tensors: dict[str, np.ndarray]) -> None:
    tensors["together"][0, 0, 1] += 1


def of_floats(tensors: dict[str, np.ndarray]) -> None:
    tensors["use"] = tensors["use"].astype(np.float32)


def infinite(tensors: dict[str, np.ndarray]) -> None:
    tensors["input_squares"][0, 0] = np.inf


def doubles(tensors: dict[str, np.ndarray]) -> None:
    tensors["input_squares"] = tensors["input_squares"].astype(np.float64)


def too_few(tensors: dict[str, np.ndarray]) -> None:
    tensors["together"] = tensors["together"][:-1].copy()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (negative, "it has no counts, or negative ones"),
        (lopsided, "together is not symmetric"),
        (of_floats, "its counts are float32 and int64, not int64"),
        (infinite, "input_squares has values that are not finite, or negative ones"),
        (doubles, "input_squares is float64 of the shape (3, 24)"),
        (too_few, "use has the shape (3, 5), together (2, 5, 5)"),
        (lambda tensors: tensors.pop("use"), "is not a profile that can be read"),
    ],
)
def test_a_damaged_profile_is_refused(
    tmp_path: Path, damage: Callable[[dict[str, np.ndarray]], Any], problem: str
) -> None:
    tensors = arrays()
    damage(tensors)
    save_file(tensors, tmp_path / "p", {"format": "faasmoe-profile", "model": "m"})
    with pytest.raises(PartitionError) as caught:
        Profile.load(tmp_path / "p")
    assert problem in str(caught.value)
    assert str(tmp_path / "p") in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file(arrays(), tmp_path / "weights")
    (tmp_path / "text").write_text("use")
    for name, problem in (("weights", "is not a profile, as"), ("text", "is not a profile that can be read")):
        with pytest.raises(PartitionError, match=problem):
            Profile.load(tmp_path / name)


@pytest.mark.parametrize(("layers_per_function", "spans"), [(1, ["00", "01", "02"]), (2, ["00-01", "02"])])
def test_a_partition_packs_by_the_profile(
    tiny: TinyPartition, tmp_path: Path, layers_per_function: int, spans: list[str]
) -> None:
    profile = random_profile()
    checkpoint = tiny.folder.parent / "model"
    manifest = partition(
        checkpoint,
        tmp_path / "out",
        granularity=Granularity(2, layers_per_function),
        name="m",
        profile=profile,
    )
    assert [block.function for block in manifest.blocks] == [
        f"m-l{span}-g{group:02}" for span in spans for group in range(3)
    ]
    assert Manifest.load(tmp_path / "out") == manifest
    for layer in range(LAYERS):
        groups = [block.experts[layer] for block in manifest.blocks if layer in block.experts]
        assert groups == pack(profile.use[layer], profile.together[layer], 2)
        assert groups != [(0, 1), (2, 3), (4,)]
    for block in manifest.blocks:
        for layer, experts in block.experts.items():
            for expert in experts:
                assert stored(tmp_path / "out", manifest, layer, expert) == stored(
                    tiny.folder, tiny.manifest, layer, expert
                )


def stored(folder: Path, manifest: Manifest, layer: int, expert: int) -> bytes:
    """The bytes of an expert, in whichever block it is."""
    block = next(block for block in manifest.blocks if expert in block.experts.get(layer, ()))
    start = block.expert_offset(layer, expert)
    return (folder / block.file).read_bytes()[start : start + manifest.expert_nbytes]


def test_long_names_are_cut_to_valid_function_names(tiny: TinyPartition, tmp_path: Path) -> None:
    checkpoint = tiny.folder.parent / "model"
    manifest = partition(
        checkpoint, tmp_path / "out", granularity=Granularity(2, 3), name="x" * 80, profile=random_profile()
    )
    names = [block.function for block in manifest.blocks]
    assert names == sorted(names)
    assert max(map(len, names)) <= 63


def test_another_models_profile_is_refused(chat_checkpoint: Path, tmp_path: Path) -> None:
    random_profile(experts=8).save(tmp_path / "p")
    message = error_line(faasmoe("partition", chat_checkpoint, tmp_path / "out", "--profile", tmp_path / "p"))
    assert message == ("the profile is of another model: of tiny, with 3 MoE layers of 8 experts, not 3 of 5")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_profile_then_partition(
    chat_checkpoint: Path, chat_partition: Path, tmp_path: Path, name: str
) -> None:
    texts = ["hello", "the second one"]
    lines = [json.dumps({"prompt": text, "by": "me"}) for text in texts] if name.endswith("l") else texts
    (tmp_path / name).write_text("\n\n".join(lines) + "\n")
    file = tmp_path / "profile"
    result = faasmoe("profile", chat_partition, "--prompts", tmp_path / name, "--max-tokens", 3, "-o", file)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0].startswith(f"{file}: 2 prompts")
    profile = Profile.load(file)
    top_k = Manifest.load(chat_partition).num_experts_per_tok
    tokens = profile.use.sum(axis=1) // top_k
    # All layers see all tokens: those of the prompts, and the generated ones but for the last.
    assert len(set(tokens.tolist())) == 1
    assert tokens[0] > 2 * 2
    assert (profile.together.sum(axis=(1, 2)) == tokens * top_k * (top_k - 1)).all()
    out = tmp_path / "out"
    assert faasmoe("partition", chat_checkpoint, out, "--profile", file).exit_code == 0
    assert faasmoe("verify", out).exit_code == 0


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("p.txt", "\n \n", "has no prompts"),
        ("p.jsonl", '{"prompt": "a"}\n{', "line 2: it is not JSON"),
        ("p.jsonl", '{"text": "a"}', "line 1: prompt: it must be a string with text"),
        ("p.jsonl", '{"prompt": " "}', "line 1: prompt: it must be a string with text"),
        ("p.jsonl", '["a"]', "line 1: prompt: it must be a string with text"),
    ],
)
def test_bad_prompts_are_named(tmp_path: Path, name: str, text: str, problem: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_prompts(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert problem in str(caught.value)


def test_prompts_that_are_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"\xff\n")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_prompts(tmp_path / "p")


def test_a_prompt_that_is_too_long_is_named(chat_partition: Path, tmp_path: Path) -> None:
    (tmp_path / "p").write_text("short\n" + "word " * 20000)
    options = ("--prompts", tmp_path / "p", "-o", tmp_path / "profile")
    assert error_line(faasmoe("profile", chat_partition, *options)).startswith(
        "prompt 2: the model's context"
    )
    assert not (tmp_path / "profile").exists()


def test_the_command_requires_prompts(chat_partition: Path) -> None:
    assert "--prompts" in usage_error(faasmoe("profile", chat_partition))

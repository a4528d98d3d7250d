"""The small files of a checkpoint are copied into its partition, and brought up to date there."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.stored_tokenizer import STORED_TOKENIZER, ModelTokenizer
from control_plane.partition.companions import MAX_TEMPLATES, update_companions
from control_plane.partition.manifest import Manifest
from control_plane.partition.partitioner import partition
from tests.support.command_line import faasmoe
from tests.support.models.checkpoints import save_checkpoint, tiny_model
from tests.support.paths import DEMO_MODEL

CARRIED = {
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
    "additional_chat_templates/rag.jinja",
}
LEFT = {
    "tokenizer_helper.py",
    "tokenizer.bin",
    "vocab.pt",
    "training_args.bin",
    "README.md",
    "additional_chat_templates/notes.txt",
}
CONFIGS = {"config.json", "generation_config.json"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tiny_model("qwen2_moe"), tmp_path_factory.mktemp("original") / "model")


@pytest.fixture
def checkpoint(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A partition of the checkpoint with a template."""
    (checkpoint / "chat_template.jinja").write_text("first")
    partition(checkpoint, tmp_path / "out")
    return tmp_path / "out"


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_all_small_files_are_copied_but_no_code(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "additional_chat_templates").mkdir()
    for name in CARRIED | LEFT:
        (checkpoint / name).write_text("{}" if name.endswith(".json") else f"this is {name}")
    shutil.copy(DEMO_MODEL / "tokenizer.json", checkpoint)
    manifest = partition(checkpoint, tmp_path / "out")
    files = CARRIED | CONFIGS | {STORED_TOKENIZER}
    assert set(manifest.files) == files
    for name in CARRIED | CONFIGS:
        assert (tmp_path / "out" / name).read_bytes() == (checkpoint / name).read_bytes()
    weights = {"dense.safetensors", *(block.file for block in manifest.blocks)}
    assert names_in(tmp_path / "out") == files | weights | {"manifest.json"}
    Manifest.load(tmp_path / "out").verify(tmp_path / "out")


def test_a_tokenizer_in_the_older_form_is_the_same_in_the_partition(checkpoint: Path, tmp_path: Path) -> None:
    """vocab.json with merges.txt, and the special tokens in files of their own."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocab = {token: number for number, token in enumerate([*sorted(alphabet), "th", "the"])}
    files: dict[str, Any] = {
        "vocab.json": vocab,
        "added_tokens.json": {"<|im_end|>": len(vocab), "<|endoftext|>": len(vocab) + 1},
        "special_tokens_map.json": {"eos_token": "<|im_end|>"},
        "tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<|endoftext|>"},
    }
    for name, content in files.items():
        (checkpoint / name).write_text(json.dumps(content))
    (checkpoint / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    partition(checkpoint, tmp_path / "out")
    ours, theirs = ModelTokenizer.load(tmp_path / "out"), AutoTokenizer.from_pretrained(checkpoint)
    assert ours.vocabulary() == theirs.get_vocab()
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.backend.encode("then the<|im_end|>").ids == theirs.encode("then the<|im_end|>")
    assert ours.eos_token_id == theirs.eos_token_id
    reference = Tokenizer(models.BPE(vocab, [("t", "h"), ("th", "e")]))
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.decoder = decoders.ByteLevel()
    assert ours.backend.encode("the").ids == reference.encode("the").ids


def test_chat_templates_in_all_their_places_are_loaded(checkpoint: Path, tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    words.save(str(checkpoint / "tokenizer.json"))
    listed = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    in_config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": listed}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(in_config))
    partition(checkpoint, tmp_path / "out")
    templates = {"default": "one", "tool_use": "two"}
    assert ModelTokenizer.load(tmp_path / "out").chat_templates == templates
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates" / "tool_use.jinja").write_text("three")
    (checkpoint / "chat_template.jinja").write_text("four")
    assert len(update_companions(checkpoint, tmp_path / "out")) == 3
    templates = {"default": "four", "tool_use": "three"}
    assert ModelTokenizer.load(tmp_path / "out").chat_templates == templates


def test_what_has_changed_is_taken_over_and_the_weights_stay(checkpoint: Path, folder: Path) -> None:
    before = Manifest.load(folder)
    weights = [(folder / block.file).stat() for block in before.blocks]
    assert update_companions(checkpoint, folder) == []
    assert Manifest.load(folder).fingerprint == before.fingerprint
    (checkpoint / "chat_template.jinja").unlink()
    (checkpoint / "generation_config.json").write_text('{"top_k": 5}')
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates" / "tool_use.jinja").write_text("new")
    changed = update_companions(checkpoint, folder)
    added = "additional_chat_templates/tool_use.jinja"
    assert changed == [added, "chat_template.jinja", "generation_config.json"]
    after = Manifest.load(folder)
    after.verify(folder)
    assert set(after.files) == CONFIGS | {added}
    assert (folder / added).read_text() == "new"
    assert not (folder / "chat_template.jinja").exists()
    assert after.fingerprint != before.fingerprint
    assert after.blocks == before.blocks
    assert [(folder / block.file).stat() for block in after.blocks] == weights
    assert update_companions(checkpoint, folder) == []


def test_the_same_users_can_read_what_was_updated(checkpoint: Path, folder: Path) -> None:
    mode = (folder / "manifest.json").stat().st_mode
    (checkpoint / "chat_template.jinja").write_text("second")
    update_companions(checkpoint, folder)
    assert (folder / "manifest.json").stat().st_mode == mode
    assert (folder / "chat_template.jinja").stat().st_mode == mode


def test_an_update_that_was_cut_off_is_done_again(
    checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint / "chat_template.jinja").write_text("second")
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "json", lambda self: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            update_companions(checkpoint, folder)
    with pytest.raises(PartitionError, match=r"chat_template\.jinja is damaged"):
        Manifest.load(folder).verify(folder)
    assert update_companions(checkpoint, folder) == ["chat_template.jinja"]
    Manifest.load(folder).verify(folder)


def test_other_weights_are_not_an_update(checkpoint: Path, folder: Path) -> None:
    later = (folder / "manifest.json").stat().st_mtime + 1
    os.utime(checkpoint / "model.safetensors", (later, later))
    with pytest.raises(PartitionError, match="has changed after its partition was made"):
        update_companions(checkpoint, folder)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_experts_per_tok": 3}, "differ in num_experts_per_tok"),
        ({"hidden_size": 48}, r"is \[5, 24, 20\] by|by config.json"),
        ({"model_type": "llama"}, "LlamaForCausalLM has no experts"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rotary embeddings of type 'dynamic'"),
    ],
)
def test_a_config_of_another_model_is_refused(
    checkpoint: Path, folder: Path, change: dict[str, Any], problem: str
) -> None:
    config = json.loads((checkpoint / "config.json").read_text()) | change
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(PartitionError, match=problem):
        update_companions(checkpoint, folder)
    Manifest.load(folder).verify(folder)


def test_a_folder_of_templates_that_leads_out_is_not_written_to(
    checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates" / "rag.jinja").write_text("new")
    with pytest.raises(PartitionError, match="is a link out of the partition"):
        update_companions(checkpoint, folder)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_too_many_templates_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "additional_chat_templates").mkdir()
    for number in range(MAX_TEMPLATES + 1):
        (checkpoint / "additional_chat_templates" / f"{number}.jinja").touch()
    with pytest.raises(PartitionError, match="more than 64 chat templates"):
        partition(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(checkpoint: Path, folder: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("second")
    done = faasmoe("partition", checkpoint, folder, "--update")
    assert (done.exit_code, done.stdout) == (0, f"updated {folder / 'chat_template.jinja'}\n")
    again = faasmoe("partition", checkpoint, folder, "--update")
    assert (again.exit_code, again.stdout) == (0, "")
    refused = faasmoe("partition", checkpoint, folder, "--update", "--dtype", "int8")
    assert refused.exit_code == 2
    assert "--update leaves the weights as they are: --dtype cannot count" in refused.stderr
    assert faasmoe("partition", checkpoint, folder.parent / "none", "--update").exit_code == 1

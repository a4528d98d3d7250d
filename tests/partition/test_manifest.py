"""manifest.json is loaded as it was saved, and errors name damaged fields and files."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash
from msgspec import structs

from control_plane.errors import PartitionError
from control_plane.partition.granularity import Granularity
from control_plane.partition.manifest import Manifest
from control_plane.partition.partitioner import partition
from tests.support.models.checkpoints import save_checkpoint, tiny_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("partition")
    checkpoint = save_checkpoint(tiny_model("qwen2_moe"), folder / "source")
    partition(checkpoint, folder / "whole", granularity=Granularity(2, 2), name="m")
    return folder / "whole"


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "partition"))


def test_load_returns_the_saved_manifest(whole: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(whole)
    manifest.save(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
    assert Manifest.load(tmp_path) == manifest


def test_fingerprint_is_the_hash_of_the_rest(whole: Path) -> None:
    document = json.loads((whole / "manifest.json").read_text())
    fingerprint = document.pop("fingerprint")
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert fingerprint == hashlib.sha256(canonical.encode()).hexdigest()


def test_checksums_are_those_of_the_files(whole: Path) -> None:
    document = json.loads((whole / "manifest.json").read_text())
    files = {part["file"]: part["sha256"] for part in [document["dense"], *document["blocks"]]}
    for name, sha256 in (files | document["files"]).items():
        assert sha256 == hashlib.sha256((whole / name).read_bytes()).hexdigest()


def test_each_expert_has_the_checksum_of_its_bytes(whole: Path) -> None:
    for block in Manifest.load(whole).blocks:
        data = (whole / block.file).read_bytes()
        for layer, experts in block.experts.items():
            for expert, checksum in zip(experts, block.checksums[layer], strict=True):
                start = block.expert_offset(layer, expert)
                assert checksum == xxhash.xxh3_64_hexdigest(data[start : start + block.expert_nbytes])


def test_verify_names_the_expert_that_is_damaged(folder: Path) -> None:
    block = Manifest.load(folder).block("m-l00-01-e02-03")
    with (folder / block.file).open("r+b") as file:
        file.seek(block.expert_offset(1, 2) + 7)
        file.write(b"damage")
    problem = rf"{block.file} is damaged: the checksum of expert 2 of layer 1 differs from the manifest's"
    with pytest.raises(PartitionError, match=problem):
        Manifest.load(folder).verify(folder)


def test_verify_finds_a_checksum_that_is_not_the_expert_s(folder: Path) -> None:
    """The file is whole, so its SHA-256 is right; a function would refuse the expert all the same."""
    manifest = Manifest.load(folder)
    first = manifest.blocks[0]
    wrong = structs.replace(first, checksums={**first.checksums, 0: ("0" * 16,) * 2})
    structs.replace(manifest, blocks=(wrong, *manifest.blocks[1:])).save(folder)
    with pytest.raises(PartitionError, match="the checksum of expert 0 of layer 0 differs"):
        Manifest.load(folder).verify(folder)


def test_block_by_function(whole: Path) -> None:
    manifest = Manifest.load(whole)
    block = manifest.block("m-l00-01-e02-03")
    assert block.experts == {0: (2, 3), 1: (2, 3)}
    assert block.expert_offset(1, 2) == block.offset + 2 * manifest.expert_nbytes
    with pytest.raises(KeyError):
        block.expert_offset(1, 4)
    with pytest.raises(KeyError):
        block.expert_offset(2, 2)
    with pytest.raises(PartitionError, match="no function nobody"):
        manifest.block("nobody")


@pytest.mark.parametrize("name", ["dense.safetensors", "config.json", "blocks/m-l00-01-e00-01.safetensors"])
def test_verify_finds_a_changed_byte(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(PartitionError, match=f"{name} is damaged"):
        Manifest.load(folder).verify(folder)


def test_verify_finds_a_wrong_size_and_a_missing_file(folder: Path) -> None:
    block = folder / "blocks" / "m-l00-01-e00-01.safetensors"
    block.write_bytes(block.read_bytes()[:-1])
    with pytest.raises(PartitionError, match=f"{block.name} has .* bytes, the manifest says"):
        Manifest.load(folder).verify(folder)
    block.unlink()
    with pytest.raises(PartitionError, match=f"cannot read .*{block.name}"):
        Manifest.load(folder).verify(folder)


def test_verify_of_one_function_reads_only_its_block(folder: Path) -> None:
    manifest = Manifest.load(folder)
    (folder / "dense.safetensors").unlink()
    (folder / "blocks" / "m-l00-01-e00-01.safetensors").write_bytes(b"")
    manifest.verify(folder, "m-l00-01-e02-03")
    with pytest.raises(PartitionError, match="m-l00-01-e00-01"):
        manifest.verify(folder, "m-l00-01-e00-01")
    with pytest.raises(PartitionError, match="no function nobody"):
        manifest.verify(folder, "nobody")


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match=r"is not a partition: .*manifest\.json: No such file"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"), [("{", "is not JSON"), ("[]", "not a JSON object"), ("\xff\xfe", "is not JSON")]
)
def test_a_file_that_is_not_a_manifest(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(PartitionError, match=problem):
        Manifest.load(tmp_path)


def put(*path: Any, value: Any) -> Callable[[Any], None]:
    """A function that sets the value at a path of keys and indices of a document."""

    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


DAMAGES: list[tuple[Callable[[Any], Any], str]] = [
    (put("format", value=3), "format '3' is not 6: split the checkpoint again with `faasmoe partition`"),
    (put("format", value="4"), "format '4' is not 6"),
    (lambda document: document.pop("format"), "format 'None' is not 6"),
    (lambda document: document.pop("blocks"), "blocks: is missing"),
    (put("surprise", value=1), "surprise: is not a known field"),
    (put("format", value=True), "format 'True' is not 6"),
    (lambda document: document.pop("fingerprint"), "its fingerprint does not match its content"),
    (put("num_experts", value=10**30), "num_experts: must be a whole number from 1 to 32768"),
    (put("num_experts", value=32768), "expert 5 of layer 0 is in no block"),
    (put("num_experts", value=True), "num_experts: must be a whole number from 1 to 32768"),
    (put("num_experts", value=float("nan")), "num_experts: must be a whole number from 1 to 32768"),
    (put("num_experts_per_tok", value=6), "num_experts_per_tok: is 6 of 5"),
    (put("hidden_size", value=2**40), "expert_nbytes: is"),
    (put("hidden_size", value=0), "hidden_size: must be a positive whole number"),
    (put("dtype", value="f16"), "dtype: must be f32 or bf16"),
    (put("dense_dtypes", "head", value="bf16"), "dense_dtypes.head: is 'bf16', not f32 or a quantised type"),
    (put("dense_dtypes", value={}), "dense_dtypes.attention: is missing"),
    (put("gate_up_dtype", value="bf16"), "gate_up_dtype: is 'bf16', not f32 or a quantised type"),
    (put("down_dtype", value="int8"), "expert_nbytes: is"),
    (put("has_bias", value="yes"), "has_bias: must be true or false"),
    (put("activation", value={}), "activation.function: is missing"),
    (put("activation", "beta", value=1), "activation.beta: is not a known field"),
    (put("activation", "gated", value=1), "activation.gated: must be true or false"),
    (put("activation", "function", value="tanh"), "activation: the function is 'tanh', not one of silu"),
    (put("activation", "function", value="x" * 10**5), "not one of silu"),
    (put("activation", "limit", value=-1), "activation: limit is -1.0, not above 0"),
    (put("activation", "limit", value=True), "activation.limit: must be a number"),
    (put("activation", "alpha", value=1e300), "activation: alpha is not a finite number"),
    (put("activation", "up_offset", value=float("inf")), "activation: up_offset is not a finite number"),
    (put("activation", "alpha", value=2), "its fingerprint does not match its content"),
    (put("expert_nbytes", value=5000), "expert_nbytes: must be a positive multiple of 4096"),
    (put("moe_layers", value=[1, 0, 2]), "moe_layers: are not ascending"),
    (put("moe_layers", value=[]), "moe_layers: are not ascending"),
    (put("moe_layers", value=[0, 1, 2, 3]), "experts: are 3 modules for 4 layers"),
    (put("dense", "sha256", value="x"), "dense: sha256 is not 64"),
    (put("dense", "nbytes", value=-1), "dense.nbytes: must be a whole number, 0 or more"),
    (put("dense", value={}), "dense.file: is missing"),
    (put("files", "config.json", value="1"), "files.config.json: sha256 is not 64"),
    (put("files", "config.json", value=1), "files[...]: must be a string"),
    (put("files", "../x", value="0" * 64), "'../x' is not a file in the partition"),
    (
        put("blocks", 0, "file", value="/etc/passwd"),
        "blocks[0]: '/etc/passwd' is not a file",
    ),
    (put("blocks", 0, "file", value="blocks/../../x"), "'blocks/../../x' is not a file"),
    (put("blocks", 0, "file", value="a\0b"), "'a\\x00b' is not a file"),
    (put("blocks", 0, "file", value="\ud800"), "is not JSON: 'utf-8' codec can't encode"),
    (put("blocks", 0, "file", value="../" * 10**6), "is not a file"),
    (put("blocks", 0, "function", value="No"), "blocks[0].function: 'No' is not a function's name"),
    (put("blocks", 0, "function", value="a" * 10**5), "is not a function's name"),
    (put("down_dtype", value="x" * 10**5), "not f32 or a quantised type"),
    (put("blocks", 0, "function", value="a" * 64), "is not a function's name"),
    (put("blocks", 1, "function", value="m-l00-01-e00-01"), "two blocks have the same function"),
    (put("blocks", 0, "offset", value=100), "blocks[0].offset: must be a positive multiple of 4096"),
    (put("blocks", 0, "nbytes", value=8192), "blocks[0].nbytes: is 8192, its experts need"),
    (put("blocks", 0, "experts", value={}), "blocks[0].experts: its layers are not ascending"),
    (
        put("blocks", 0, "experts", value={"one": [1]}),
        "blocks[0].experts: must be an object of layer numbers",
    ),
    (put("blocks", 0, "experts", value={"1": [0, 1], "0": [0, 1]}), "its layers are not ascending"),
    (put("blocks", 0, "experts", "0", value=[1, 0]), "experts of layer 0 are not ascending"),
    (
        put("blocks", 0, "experts", "0", value="01"),
        "blocks[0].experts[...]: must be a list of",
    ),
    (put("blocks", 0, "experts", "0", value=[0, 2]), "expert 2 of layer 0 is in two blocks"),
    (put("blocks", 0, "experts", "0", value=[0, 9]), "expert 1 of layer 0 is in no block"),
    (put("blocks", 0, "checksums", value={}), "blocks[0].checksums: are not one for each expert"),
    (put("blocks", 0, "checksums", "0", value=["0" * 16]), "blocks[0].checksums: are not one for each"),
    (put("blocks", 0, "checksums", "7", value=["0" * 16]), "blocks[0].checksums: are not one for each"),
    (
        put("blocks", 0, "checksums", "0", value=["0" * 15, "0" * 16]),
        "blocks[0].checksums[...][0]: must be an object of layer numbers with lists of checksums",
    ),
    (
        put("blocks", 0, "checksums", "0", 0, value="0" * 16),
        "its fingerprint does not match its content",
    ),
    (lambda document: document["blocks"].pop(), "is in no block"),
    (put("blocks", 3, value=None), "blocks[3]: must be an object"),
    (put("dense", "sha256", value="0" * 64), "its fingerprint does not match its content"),
    (put("name", value="other"), "its fingerprint does not match its content"),
]


@pytest.mark.parametrize(("damage", "problem"), DAMAGES, ids=[problem for _, problem in DAMAGES])
def test_the_error_names_the_damaged_field(folder: Path, damage: Callable[[Any], Any], problem: str) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    damage(document)
    path.write_text(json.dumps(document))
    with pytest.raises(PartitionError) as caught:
        Manifest.load(folder)
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "is not JSON"),
        ('{"a":' * 100_000, "is not JSON"),
        ("{" + '"a": 1, "a": 2' + "}", "has the same name twice"),
        ('{"a": ' + "1" * 5000 + "}", "is not JSON"),
        ('{"a": "' + "x" * (16 << 20) + '"}', "is larger than 16 MiB"),
    ],
    ids=["deep list", "deep object", "same name", "many digits", "large"],
)
def test_hostile_json_is_an_error_within_bounds(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(PartitionError) as caught:
        Manifest.load(tmp_path)
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["pipe", "folder"])
@pytest.mark.parametrize("name", ["manifest.json", "config.json", "blocks/m-l00-01-e00-01.safetensors"])
def test_what_is_no_regular_file_is_not_read(folder: Path, name: str, make: Callable[[Path], None]) -> None:
    """A pipe would hold the reader for ever."""
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises(PartitionError, match=f"{name} is not a regular file"):
        Manifest.load(folder).verify(folder)


@pytest.mark.parametrize("name", ["dense.safetensors", "config.json", "blocks/m-l00-01-e00-01.safetensors"])
def test_a_link_out_of_the_partition_is_refused(folder: Path, whole: Path, name: str) -> None:
    """Whoever builds an image from the folder would pack another file of the machine into it."""
    (folder / name).unlink()
    (folder / name).symlink_to(whole / name)
    with pytest.raises(PartitionError, match=f"{name} is a link out of the partition"):
        Manifest.load(folder)


def test_a_folder_that_is_a_link_out_of_the_partition_is_refused(folder: Path, whole: Path) -> None:
    shutil.rmtree(folder / "blocks")
    (folder / "blocks").symlink_to(whole / "blocks")
    with pytest.raises(PartitionError, match="is a link out of the partition"):
        Manifest.load(folder)


def test_links_within_the_partition_and_to_it_are_followed(folder: Path, tmp_path: Path) -> None:
    """Kubernetes mounts volumes so."""
    (folder / "dense.safetensors").rename(folder / "..data")
    (folder / "dense.safetensors").symlink_to("..data")
    (tmp_path / "link").symlink_to(folder)
    Manifest.load(tmp_path / "link").verify(tmp_path / "link")

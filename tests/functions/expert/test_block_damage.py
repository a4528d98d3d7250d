"""What a function answers when its block's file is touched, copied, damaged, cut, replaced or gone."""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from control_plane.partition.granularity import Granularity
from functions.contract.messages import Invocation
from functions.expert.block_file import BlockDamaged, BlockFile
from functions.expert.expert_block import BlockError, ExpertBlock, InvocationRefused
from functions.kernels import load_kernel
from tests.conftest import StartFunction
from tests.support.api.api_server import eventually
from tests.support.models.tiny_partition import TinyPartition


class Copy:
    """A copy of the tiny partition that a test may damage, with the block of its first function."""

    def __init__(self, tiny: TinyPartition, folder: Path) -> None:
        self.tiny = tiny
        self.folder = Path(shutil.copytree(tiny.folder, folder / "copy"))
        self.block = tiny.manifest.blocks[0]
        self.file = self.folder / self.block.file
        self.original = tiny.folder / self.block.file

    @contextmanager
    def opened(self, limit: int = 0) -> Iterator[ExpertBlock]:
        """The first function's block, which keeps `limit` experts in memory: none by default."""
        nbytes = limit * self.tiny.manifest.expert_nbytes
        block = ExpertBlock.open(self.folder, self.block.function, load_kernel(), 1, nbytes)
        with closing(block.residency):
            yield block

    def call(self, layer: int, expert: int) -> Invocation:
        """A call of one expert."""
        invocation = self.tiny.invocation(self.block.function, layer)
        invocation.expert_index[:, 1:] = -1
        invocation.expert_index[:, 0] = expert
        return invocation

    def check(self, block: ExpertBlock, layer: int, expert: int) -> None:
        """Fail unless the block gives the model's answer."""
        invocation = self.call(layer, expert)
        self.tiny.check(invocation, block.run(invocation)[0])

    def flip(self, layer: int, expert: int) -> None:
        """Change 64 bits of an expert, and nothing that a file's status tells."""
        status = self.file.stat()
        with self.file.open("r+b") as file:
            file.seek(self.block.expert_offset(layer, expert) + 100)
            bits = bytes(255 - byte for byte in file.read(8))
            file.seek(-8, os.SEEK_CUR)
            file.write(bits)
        os.utime(self.file, ns=(status.st_atime_ns, status.st_mtime_ns))

    def refusal(self, block: ExpertBlock, layer: int, expert: int) -> InvocationRefused:
        with pytest.raises(InvocationRefused) as refused:
            block.run(self.call(layer, expert))
        return refused.value


@pytest.fixture
def copy(tiny: TinyPartition, tmp_path: Path) -> Copy:
    return Copy(tiny, tmp_path)


def touch(copy: Copy) -> None:
    os.utime(copy.file, ns=(0, 0))


def copy_in_place(copy: Copy) -> None:
    shutil.copyfile(copy.original, copy.file)


def rename_a_copy(copy: Copy) -> None:
    shutil.copyfile(copy.original, copy.folder / "new")
    (copy.folder / "new").rename(copy.file)


def rename_a_copy_over_a_damaged_file(copy: Copy) -> None:
    copy.flip(1, 0)
    rename_a_copy(copy)


def remove(copy: Copy) -> None:
    copy.file.unlink()


def rename_something_else(copy: Copy) -> None:
    remove(copy)
    copy.file.write_bytes(b"something else")


@pytest.mark.parametrize(
    "change",
    [touch, copy_in_place, rename_a_copy, rename_a_copy_over_a_damaged_file, remove, rename_something_else],
)
def test_a_file_with_the_same_content_is_as_good(copy: Copy, change: Callable[[Copy], None]) -> None:
    with copy.opened() as block:
        copy.check(block, 1, 0)
        change(copy)
        copy.check(block, 1, 0)
        copy.check(block, 2, 1)


@pytest.mark.parametrize("limit", [0, 6])
def test_flipped_bits_are_an_error_of_their_expert_alone(copy: Copy, limit: int) -> None:
    copy.flip(1, 1)
    with copy.opened(limit) as block:
        refused = copy.refusal(block, 1, 1)
        assert (refused.status, refused.code) == (500, "damaged")
        for part in (str(copy.file), "expert 1 of layer 1", "`faasmoe verify`"):
            assert part in str(refused)
        for layer, expert in ((1, 0), (0, 1), (2, 1)):
            copy.check(block, layer, expert)
        copy_in_place(copy)
        copy.check(block, 1, 1)


def test_flipped_bits_that_a_prefetch_finds_harm_no_call(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest's own capture can lose what another thread writes while it is read.
    monkeypatch.setattr(sys, "stderr", errors := io.StringIO())
    copy.flip(1, 0)
    with copy.opened(6) as block:
        nothing = copy.call(1, 0)
        fields = ("hidden_states", "expert_index", "expert_weight")
        empty = {name: getattr(nothing, name)[:0] for name in fields}
        block.run(replace(nothing, prefetch={1: [0]}, **empty))
        eventually(lambda: "expert 0 of layer 1" in errors.getvalue(), True)
        copy.check(block, 1, 1)
        assert copy.refusal(block, 1, 0).code == "damaged"


def test_a_file_that_is_cut_is_damaged_until_it_is_whole_again(copy: Copy) -> None:
    with copy.opened() as block:
        for size in (copy.block.expert_offset(1, 0) + 4096, copy.block.expert_offset(1, 0) + 100):
            os.truncate(copy.file, size)
            refused = copy.refusal(block, 2, 0)
            assert (refused.status, refused.code) == (500, "damaged")
            assert "ends within expert 0 of layer 2" in str(refused)
            copy.check(block, 0, 0)
            copy_in_place(copy)
            copy.check(block, 2, 0)


def test_a_disk_that_cannot_be_read_is_an_error_at_once(copy: Copy) -> None:
    """A directory stands for a broken disk: the system refuses to read it."""
    with copy.opened() as block:
        copy.flip(0, 0)
        remove(copy)
        copy.file.mkdir()
        refused = copy.refusal(block, 0, 0)
        assert (refused.status, refused.code) == (500, "unreadable")
        assert f"cannot read {copy.file}: Is a directory" in str(refused)


def test_a_pipe_in_place_of_the_file_makes_nobody_wait(copy: Copy) -> None:
    copy.flip(0, 0)
    with copy.opened() as block:
        remove(copy)
        os.mkfifo(copy.file)
        assert copy.refusal(block, 0, 0).code == "unreadable"
    with pytest.raises(BlockError, match="has 0 bytes"), copy.opened():
        pass


def test_a_link_out_of_the_partition_is_refused(copy: Copy) -> None:
    remove(copy)
    copy.file.symlink_to(copy.original)
    with pytest.raises(BlockError, match="is a link out of the partition"), copy.opened():
        pass
    copy.file.unlink()
    copy.file.symlink_to("elsewhere")
    shutil.copyfile(copy.original, copy.file.with_name("elsewhere"))
    with copy.opened() as block:
        copy.check(block, 0, 0)


def test_pieces_are_checked_when_the_expert_is_complete(copy: Copy) -> None:
    manifest = ExpertBlock.open(copy.folder, copy.block.function, load_kernel(), 1).manifest
    size = manifest.expert_nbytes
    copy.flip(0, 1)
    with closing(BlockFile(copy.file, manifest.offset, size, manifest.experts)) as file:
        slot = memoryview(bytearray(size))
        file.read(1, slot, 0, 4096)
        with pytest.raises(BlockDamaged, match="expert 1 of layer 0"):
            file.read(1, slot, 4096, size)
        file.read(2, slot, 0, 4096)
        file.read(2, slot, 4096, size)
        expected = copy.original.read_bytes()[copy.block.expert_offset(1, 0) :][:size]
        assert bytes(slot) == expected


def test_a_function_of_a_partition_that_was_replaced_ends(
    tiny: TinyPartition, copy: Copy, tmp_path: Path, start_function: StartFunction
) -> None:
    """Its gateway then starts it anew, with the partition that is there."""
    other = TinyPartition.make(tmp_path / "other", "int8", Granularity(2, 3))
    function = start_function(copy.folder, copy.block.function)
    tiny.check(copy.call(0, 0), function.invoke(copy.call(0, 0)).output)
    shutil.copytree(other.folder, copy.folder, dirs_exist_ok=True)
    body = b"".join(copy.call(1, 0).encode())
    assert function.error(body) == (503, "replaced")
    assert function.process.wait(20) == 0
    function = start_function(copy.folder, copy.block.function)
    assert function.error(body) == (409, "wrong_model")
    invocation = other.invocation(copy.block.function)
    other.check(invocation, function.invoke(invocation).output)


def test_a_damaged_block_ends_no_function(copy: Copy, start_function: StartFunction) -> None:
    function = start_function(copy.folder, copy.block.function)
    copy.flip(1, 0)
    for text in ("{", "[]", json.dumps({"fingerprint": copy.tiny.manifest.fingerprint})):
        (copy.folder / "manifest.json").write_text(text)
        assert function.error(b"".join(copy.call(1, 0).encode())) == (500, "damaged")
    copy.tiny.check(copy.call(0, 0), function.invoke(copy.call(0, 0)).output)

"""However a run ends, the partition is complete or absent. Memory use stays near the size of one expert."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.support.checkpoint import random_checkpoint, write_weights
from control_plane.errors import PartitionError
from control_plane.partition.manifest import Manifest
from control_plane.partition.partitioner import partition
from tests.support.models.checkpoints import save_checkpoint, tiny_config, tiny_model

pytestmark = pytest.mark.slow

STOP_HALFWAY = """
import sys
from pathlib import Path
from control_plane.partition.partitioner import partition

def wait_halfway(done, total):
    if done > total // 2:
        print("halfway", flush=True)
        sys.stdin.read()

partition(Path(sys.argv[1]), Path(sys.argv[2]), progress=wait_halfway)
"""

FILL_THE_DISK = """
import resource, sys
from pathlib import Path
from control_plane.errors import PartitionError
from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.model.inspection import inspect
from control_plane.partition.partitioner import partition

checkpoint = Checkpoint.open(Path(sys.argv[1]))
architecture = inspect(checkpoint)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    partition(checkpoint, Path(sys.argv[2]), architecture=architecture)
except PartitionError as error:
    print(error)
"""

# The peak of this program alone: getrusage's would include its parent's before exec.
PEAK = """
import sys
from pathlib import Path
from control_plane.partition.partitioner import partition

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

before = peak()
partition(Path(sys.argv[1]), Path(sys.argv[2]), dtype=sys.argv[3], dense_dtype=sys.argv[4])
print(peak() - before)
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return save_checkpoint(tiny_model("qwen3_moe"), tmp_path / "in" / "tiny")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "partition"


def command(program: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", program, *map(str, arguments)]


@pytest.fixture
def halfway(checkpoint: Path, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has written half of a partition, and waits."""
    with subprocess.Popen(
        command(STOP_HALFWAY, checkpoint, out), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"halfway\n"
            yield process
        finally:
            process.kill()


def test_the_folder_appears_only_at_the_end(halfway: subprocess.Popen[bytes], out: Path) -> None:
    assert [path.name for path in out.parent.iterdir()] == [".partition.partial"]
    halfway.communicate()
    assert halfway.returncode == 0
    assert [path.name for path in out.parent.iterdir()] == ["partition"]
    Manifest.load(out).verify(out)


def test_run_after_a_kill(halfway: subprocess.Popen[bytes], checkpoint: Path, out: Path) -> None:
    halfway.kill()
    halfway.wait()
    left = out.parent / ".partition.partial"
    (left / "from an older version").mkdir()
    assert any((left / "blocks").iterdir())
    manifest = partition(checkpoint, out)
    assert [path.name for path in out.parent.iterdir()] == ["partition"]
    assert {path.name for path in out.iterdir()} == {
        *manifest.files,
        "manifest.json",
        "dense.safetensors",
        "blocks",
    }
    Manifest.load(out).verify(out)


def test_two_runs_do_not_mix(halfway: subprocess.Popen[bytes], checkpoint: Path, out: Path) -> None:
    with pytest.raises(PartitionError, match="another run is writing to"):
        partition(checkpoint, out)
    halfway.communicate()
    assert halfway.returncode == 0
    Manifest.load(out).verify(out)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
@pytest.mark.parametrize("share", [0.01, 0.5, 1])
def test_an_exception_leaves_no_files(
    checkpoint: Path, out: Path, error: type[BaseException], share: float
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done >= total * share:
            raise error

    with pytest.raises(error):
        partition(checkpoint, out, progress=interrupt)
    assert not list(out.parent.iterdir())
    partition(checkpoint, out)


def test_a_failed_write_leaves_no_files(checkpoint: Path, out: Path) -> None:
    result = subprocess.run(
        command(FILL_THE_DISK, checkpoint, out), capture_output=True, text=True, check=True
    )
    assert result.stdout == f"cannot write {out}: File too large\n"
    assert not list(out.parent.iterdir())


@pytest.fixture(scope="module")
def large_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """200 MB of experts of 3 MB each, and a head of 40 MB. They are always removed at the end."""
    folder = tmp_path_factory.mktemp("large")
    sizes = {"hidden_size": 512, "moe_intermediate_size": 1024, "num_experts": 16, "num_hidden_layers": 4}
    sizes["vocab_size"] = 40_000
    checkpoint = random_checkpoint(tiny_config("qwen3_moe", **sizes), folder)
    write_weights(checkpoint.tensors, folder / "model.safetensors")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(("dtype", "dense_dtype"), [("bf16", "auto"), ("int8", "int8")])
def test_memory_stays_near_one_expert(
    large_checkpoint: Path, out: Path, dtype: str, dense_dtype: str
) -> None:
    assert (large_checkpoint / "model.safetensors").stat().st_size > 200e6
    result = subprocess.run(
        command(PEAK, large_checkpoint, out, dtype, dense_dtype), capture_output=True, text=True, check=True
    )
    shutil.rmtree(out)
    expert_nbytes = 3 * 512 * 1024 * 2
    assert int(result.stdout) < 5 * expert_nbytes


def test_torch_is_not_loaded() -> None:
    """Importing torch would take more memory than everything else."""
    program = "import sys, control_plane.partition.partitioner; print('torch' in sys.modules)"
    assert subprocess.run(command(program), capture_output=True, check=True).stdout == b"False\n"


def test_a_link_in_the_place_of_the_partial_folder_is_not_followed(checkpoint: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("data")
    (tmp_path / ".out.partial").symlink_to(precious)
    with pytest.raises(PartitionError):
        partition(checkpoint, tmp_path / "out")
    assert (precious / "file").read_text() == "data"
    assert not (tmp_path / "out").exists()

"""Control groups of versions 1 and 2 are made in the right place, limited, and read."""

import subprocess
from pathlib import Path

import pytest

from bench.support.cgroup import Cgroup, parent

V1 = "4:memory:/jobs/7\n3:cpu,cpuacct:/\n0::/\n"
V2 = "0::/user.slice/shell.scope\n"


def folder_with(root: Path, group: str, **files: str) -> Path:
    folder = root / group
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_version_1_nests_in_our_own_group(tmp_path: Path) -> None:
    own = folder_with(tmp_path, "memory/jobs/7", cgroup__procs="1\n")
    assert parent(V1, tmp_path) == own


def test_a_group_outside_of_the_container_leads_to_the_root(tmp_path: Path) -> None:
    root = folder_with(tmp_path, "memory", cgroup__procs="1\n")
    assert parent(V1, tmp_path) == root


def test_version_2_takes_the_nearest_group_that_delegates_memory(tmp_path: Path) -> None:
    folder_with(tmp_path, ".", cgroup__subtree_control="memory cpu\n")
    slice_ = folder_with(tmp_path, "user.slice", cgroup__subtree_control="memory pids\n")
    folder_with(tmp_path, "user.slice/shell.scope", cgroup__subtree_control="\n")
    assert parent(V2, tmp_path) == slice_


@pytest.mark.parametrize(
    ("usage", "events", "limits"),
    [
        ("memory.current", "memory.events", {"memory.max": "500", "memory.swap.max": "0"}),
        (
            "memory.usage_in_bytes",
            "memory.oom_control",
            {"memory.limit_in_bytes": "500", "memory.memsw.limit_in_bytes": "500"},
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_both_versions_are_read_and_limited(
    tmp_path: Path, usage: str, events: str, limits: dict[str, str]
) -> None:
    for name in limits:
        (tmp_path / name).write_text("max")
    (tmp_path / usage).write_text("4096\n")
    (tmp_path / events).write_text("oom 9\nunder_oom 0\noom_kill 2\n")
    group = Cgroup(tmp_path)
    group.limit(500)
    assert {name: (tmp_path / name).read_text() for name in limits} == limits
    assert (group.used_bytes(), group.out_of_memory_kills()) == (4096, 2)


def test_a_command_joins_the_group_before_it_runs(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "it's a group", cgroup__procs="")
    command = Cgroup(folder).command(["sh", "-c", 'echo "$$ $1"', "sh", "an argument; with $signs"])
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
    pid, argument = printed.rstrip("\n").split(" ", 1)
    assert (folder / "cgroup.procs").read_text().strip() == pid
    assert argument == "an argument; with $signs"

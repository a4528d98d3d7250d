"""Results are kept in a file and printed as tables."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.memory_limit.results import Machine, Result, Results, markdown
from control_plane.errors import ConfigError


def test_a_repeated_measurement_replaces_the_earlier_result(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.json"
    first = Result("5GB", "FaaSMoE", 1, decode=3.0, machine=Machine(2e10, 1e9))
    second = Result("5GB", "FaaSMoE", 6, problem="out of memory")
    Results(file).add([first, second])
    again = Results(file)
    again.add([replace(first, decode=4.0)])
    lines = Results(file).markdown().splitlines()
    assert lines == again.markdown().splitlines()
    assert ["4.0" in line for line in lines[:4]] == [False, False, True, False]
    assert "out of memory" in lines[3]


def test_figures_have_units() -> None:
    result = Result(
        "8GB",
        "FaaSMoE",
        1,
        decode=7.04,
        memory_peak=7.5e9,
        out_of_memory_kills=0,
        disk_bytes_read=12_300_000.0,
        share_of_limit=0.854,
    )
    cells = [cell.strip() for cell in markdown([result]).splitlines()[2].split("|")]
    assert {"7.0", "7.50 GB", "12.3 MB", "85%", "0"} <= set(cells)


def test_the_parts_of_a_step_are_a_second_table(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    measured = Result(
        "8GB", "FaaSMoE", 1, decode=7.0, step_ms={"dense": 30.0, "wait": 12.5}, cold_experts=3.25
    )
    results.add([measured, Result("8GB", "FaaSMoE", 6, problem="out of memory")])
    _, table = Results(tmp_path / "results.json").markdown().split("\n\n")
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert header == ["limit", "system", "sequences", "a step, ms", "dense", "wait", "cold experts/token"]
    assert rows == [["8GB", "FaaSMoE", "1", "42.5", "30.0", "12.5", "3.2"]]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text('[{"limit": "5GB"}]')
    with pytest.raises(ConfigError, match=r"results\.json"):
        Results(file)


def test_the_slower_of_memory_and_disk_limits_the_speed() -> None:
    machine = Machine(memory_bandwidth=100.0, disk_bandwidth=10.0)
    assert machine.tokens_per_second(50.0, 1.0) == pytest.approx(2.0)
    assert machine.tokens_per_second(50.0, 20.0) == pytest.approx(0.5)

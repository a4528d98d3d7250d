"""The report shows the results in the paper's units, and is made from the JSON files alone."""

import re
import sys
from pathlib import Path

import pytest

from bench.comparison.measuring.recording import Recording
from bench.comparison.report.report import write_report
from bench.comparison.report.tables import Table, tables
from control_plane.errors import ConfigError
from tests.support.comparison_results import RUN, measured


def recorded(folder: Path) -> Recording:
    recording = Recording.begin(folder, RUN)
    for one in (
        measured("faasmoe-shared", gigabytes=0.5, cpu=1.5, functions=2),
        measured("baseline"),
        measured("local", problem="does not fit: it needs 30.0 GB, and 20.0 are free"),
        measured("faasmoe-shared", gigabytes=0.5, cpu=1.5, functions=2, size=20),
        measured("faasmoe-shared", gigabytes=0.5, cpu=1.5, functions=4, size=6),
    ):
        recording.add(one)
    return recording


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Table]:
    return {table.title: table for table in tables(recorded(tmp_path_factory.mktemp("results")))}


def cells(table: Table, row: int) -> dict[str, str]:
    """Cells of a row by column. Only for columns with unique names."""
    return dict(zip(table.columns, table.rows[row], strict=True))


def test_processor_and_memory_are_in_the_papers_units(found: dict[str, Table]) -> None:
    table = found["Processor and memory"]
    assert [row[0] for row in table.rows] == ["Baseline", "Faasmoe-Shared"]
    assert table.rows[0][1:] == ["150.0%", "75.0%", "4.00 GB", "2.00 GB", "4.00 GB", "1126.8%", "217.52 GB"]
    assert table.rows[1][1:] == ["37.5%", "18.8%", "1.50 GB", "0.75 GB", "1.50 GB", "326.4%", "72.25 GB"]


def test_costs_are_shares_of_the_baselines(found: dict[str, Table]) -> None:
    """Six tokens from 1 s to 5 s."""
    table = found["What a generated token costs"]
    assert table.rows[0][1:] == ["1.5", "1000.0 ms", "1.000", "1.000", "1.000", "1.000"]
    assert table.rows[1][1:] == ["1.5", "250.0 ms", "0.250", "0.375", "0.375", "0.332"]


def test_latency_counts_from_when_a_request_was_due(found: dict[str, Table]) -> None:
    row = cells(found["Latency"], 0)
    assert (row["requests"], row["failed"], row["client late by, ms"]) == ("2", "1", "10")
    assert row["first token: p50 ms"] == "750"
    assert row["between tokens: p50 ms"] == "150"


def test_resources_and_traffic_add_up(found: dict[str, Table]) -> None:
    shared = cells(found["The bill"], 1)
    assert (shared["GB-seconds"], shared["function-seconds"], shared["cold starts"]) == ("6", "8", "2")
    assert shared["to functions and back, per token"] == "100.0 kB"
    assert (shared["memory, idle"], shared["page cache of weights"]) == ("0.50 GB", "0.10 GB")
    assert cells(found["The bill"], 0)["to functions and back, per token"] == "-"


def test_memory_is_shown_by_role_for_replay_and_idle(found: dict[str, Table]) -> None:
    shared = cells(found["Where memory is"], 1)
    assert (shared["function"], shared["function, idle"]) == ("1.00 GB", "-")
    assert (shared["control plane"], shared["control plane, idle"]) == ("0.50 GB", "0.50 GB")


def test_each_tenant_has_its_own_figures(found: dict[str, Table]) -> None:
    table = found["By tenant"]
    assert [row[1:4] for row in table.rows[:2]] == [["tenant-1", "1", "4"], ["tenant-2", "1", "2"]]


def test_function_sizes_are_compared(found: dict[str, Table]) -> None:
    table = found["Experts per function (FaaSMoE-Shared)"]
    assert [row[0] for row in table.rows] == ["6", "20"]
    row = cells(table, 1)
    assert (row["calls/token"], row["rows a call"]) == ("10.0", "4.0")


def test_a_strategy_that_was_not_measured_is_shown_with_its_reason(found: dict[str, Table]) -> None:
    assert found["Not measured"].rows == [
        ["Local", "30.0 GB", "does not fit: it needs 30.0 GB, and 20.0 are free"]
    ]


def test_a_run_without_a_baseline_has_no_ratios(tmp_path: Path) -> None:
    recording = Recording.begin(tmp_path, RUN)
    recording.add(measured("local"))
    costs = next(table for table in tables(recording) if table.title == "What a generated token costs")
    assert costs.rows[0][3:6] == ["-", "-", "-"]


def test_the_page_is_a_single_file(tmp_path: Path) -> None:
    recorded(tmp_path)
    files = write_report(tmp_path)
    assert {file.name for file in files} == {
        *("report.md", "report.html", "comparison.png", "latency.png", "memory.png", "granularity.png")
    }
    page = (tmp_path / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 4
    assert not re.search(r'(src|href)="(?!data:)', page)
    text = (tmp_path / "report.md").read_text()
    for table in tables(Recording.load(tmp_path)):
        assert f"<h2>{table.title}</h2>" in page
        assert table.markdown() in text
    assert all((tmp_path / image).exists() for image in re.findall(r"!\[\w+\]\((.+?)\)", text))


def test_without_matplotlib_one_line_says_that_there_are_no_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert [file.name for file in write_report(tmp_path)] == ["report.md", "report.html"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "no plots: matplotlib is not installed (faasmoe's extra bench)"


def test_text_is_escaped_in_html(tmp_path: Path) -> None:
    recording = Recording.begin(tmp_path, RUN)
    recording.add(measured("local", problem="<b>crashed</b>"))
    write_report(tmp_path)
    assert "&lt;b&gt;crashed" in (tmp_path / "report.html").read_text()


def test_a_run_without_results_is_refused(tmp_path: Path) -> None:
    Recording.begin(tmp_path, RUN)
    with pytest.raises(ConfigError, match="no strategy yet"):
        write_report(tmp_path)

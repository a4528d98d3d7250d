"""`faasmoe bench`: the files that it writes, and its errors."""

from collections import Counter
from pathlib import Path

import pytest

from bench.comparison.measuring.recording import Recording
from bench.comparison.workload import workload
from tests.support.command_line import error_line, faasmoe, usage_error
from tests.support.comparison_results import RUN, measured

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:02.2224400,879,55
"""


def test_a_trace_becomes_a_workload(tmp_path: Path) -> None:
    trace, out = tmp_path / "azure.csv", tmp_path / "w.jsonl"
    trace.write_text(AZURE)
    options = ("--trace", trace, "--scale", 0.5, "--speed", 2, "--duration", "5s", "--tenants", 3, "-o", out)
    result = faasmoe("bench", "workload", "azure", *options)
    assert result.exit_code == 0, result.output
    requests = workload.read(out)
    assert [(r.arrival, r.prompt_tokens, r.output_tokens) for r in requests] == [
        (0.0, 187, 22),
        (pytest.approx(2.1573, abs=1e-3), 198, 54),
    ]
    assert result.output.startswith(f"{out}: 2 requests of ")


@pytest.mark.parametrize("kind", ["bbh", "poisson", "bursty"])
def test_the_same_seed_makes_the_same_workload(kind: str, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        assert faasmoe("bench", "workload", kind, "--seed", seed, "--rate", 2, "-o", file).exit_code == 0
    texts = [file.read_text() for file in files]
    assert texts[0] == texts[1] != texts[2]


def test_rounds_have_five_requests_of_each_tenant(tmp_path: Path) -> None:
    out = tmp_path / "w.jsonl"
    faasmoe("bench", "workload", "bbh", "--rounds", 2, "--tenants", 4, "-o", out)
    counts = Counter((request.round, request.tenant) for request in workload.read(out))
    assert len(counts) == 8
    assert set(counts.values()) == {5}


def test_errors_in_a_trace_name_the_line(tmp_path: Path) -> None:
    trace = tmp_path / "azure.csv"
    trace.write_text(AZURE[:-4])
    message = error_line(faasmoe("bench", "workload", "azure", "--trace", trace, "-o", tmp_path / "w"))
    assert message == f"{trace}, line 4: cut off"
    trace.write_text(AZURE.replace("ContextTokens", "Prompt"))
    message = error_line(faasmoe("bench", "workload", "azure", "--trace", trace, "-o", tmp_path / "w"))
    assert "has no column 'ContextTokens'" in message
    assert not (tmp_path / "w").exists()


def test_usage_errors() -> None:
    assert usage_error(faasmoe("bench", "workload", "azure")) == "azure needs --trace"
    wrong = usage_error(faasmoe("bench", "run", "--experts-per-function", "6,many"))
    assert "'many' is not a number above zero" in wrong
    assert error_line(faasmoe("bench", "run", "--strategies", "vllm")).startswith("no strategy 'vllm'")


def test_resume_takes_no_other_options(tmp_path: Path) -> None:
    message = usage_error(faasmoe("bench", "run", "--resume", tmp_path, "--tenants", 3))
    assert message == "--resume continues a run with its own options: it takes no --tenants"
    message = error_line(faasmoe("bench", "run", "--resume", tmp_path))
    assert message == f"{tmp_path} has no results of `faasmoe bench run`"


def test_report_of_recorded_results(tmp_path: Path) -> None:
    recording = Recording.begin(tmp_path, RUN)
    recording.add(measured("baseline"))
    result = faasmoe("bench", "report", tmp_path)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[:2] == [str(tmp_path / "report.md"), str(tmp_path / "report.html")]
    assert error_line(faasmoe("bench", "report", tmp_path.parent)).endswith(
        "has no results of `faasmoe bench run`"
    )

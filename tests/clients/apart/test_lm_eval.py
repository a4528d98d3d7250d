"""lm-evaluation-harness, by the commands in docs/serving.md, with tasks of our own."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clients.apart.programs import run
from tests.clients.conftest import MODEL, Server
from tests.clients.weather import QUESTION, REPORT

EXAMPLE = Path("examples/lm_eval.sh")
OTHER = "It rains."
PROMPT = f"{QUESTION}<|report|>"
"""The model continues it with `REPORT`."""


def task(folder: Path, documents: list[dict[str, Any]], **settings: Any) -> str:
    """Write a task, whose test set are the documents; returns its name."""
    data = folder / "documents.jsonl"
    data.write_text("\n".join(map(json.dumps, documents)))
    name = "weather"
    common = {"task": name, "dataset_path": "json", "test_split": "test", "doc_to_text": "{{question}}"}
    files = {"dataset_kwargs": {"data_files": {"test": str(data)}}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**common, **files, **settings}))
    return name


def results(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The task's metrics, and what the harness has logged of each document."""
    (summary,) = folder.rglob("results_*.json")
    (samples,) = folder.rglob("samples_*.jsonl")
    (metrics,) = json.loads(summary.read_text())["results"].values()
    return metrics, [json.loads(line) for line in samples.read_text().splitlines()]


def test_log_likelihoods(server: Server, tmp_path: Path) -> None:
    """The model is sure of its report: its probability is nearly 1, and that of anything else nearly 0."""
    choices = [REPORT, OTHER]
    documents = [{"question": PROMPT, "choices": choices, "answer": answer} for answer in (0, 1)]
    name = task(
        tmp_path,
        documents,
        output_type="multiple_choice",
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
        target_delimiter="",
        metric_list=[{"metric": "acc"}],
    )
    options = ["--include_path", tmp_path, "--output_path", tmp_path, "--log_samples"]
    run("sh", EXAMPLE, server.checkpoint, name, *options, server=server, folder=tmp_path)
    metrics, samples = results(tmp_path)
    assert metrics["acc,none"] == 0.5
    for sample in samples:
        ((report, is_greedy),), ((other, other_is_greedy),) = sample["resps"]
        assert (is_greedy, other_is_greedy) == ("True", "False")
        assert float(report) == pytest.approx(0, abs=1e-3)
        assert float(other) < -50


def test_generation(server: Server, tmp_path: Path) -> None:
    name = task(
        tmp_path,
        [{"question": QUESTION, "answer": REPORT}, {"question": QUESTION, "answer": OTHER}],
        output_type="generate_until",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 64},
        metric_list=[{"metric": "exact_match"}],
    )
    url = f"{server.v1}/chat/completions"
    run(
        *("lm_eval", "--model", "local-chat-completions", "--apply_chat_template", "--tasks", name),
        *("--model_args", f"model={MODEL},base_url={url},num_concurrent=8"),
        *("--include_path", tmp_path, "--output_path", tmp_path, "--log_samples"),
        server=server,
        folder=tmp_path,
    )
    metrics, samples = results(tmp_path)
    assert metrics["exact_match,none"] == 0.5
    assert [sample["resps"] for sample in samples] == [[[REPORT]], [[REPORT]]]

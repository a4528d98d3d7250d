"""Workloads are written and read back, errors name the line, and a seed determines generated requests."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import pytest

from bench.comparison.workload.generators import Lengths, bbh, bursty, poisson, tenants
from bench.comparison.workload.traces import TRACES, Conversion
from bench.comparison.workload.workload import WorkloadRequest, read, write
from control_plane.errors import ConfigError

NAMES = tenants(6)
GOOD = {"tenant": "a", "arrival": 0.5, "output_tokens": 4, "prompt_tokens": 8}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of seven tasks with three questions each."""
    folder = tmp_path / "bbh"
    folder.mkdir()
    for task in range(7):
        examples = [{"input": f"task {task}, question {n}?", "target": "yes"} for n in range(3)]
        (folder / f"task_{task}.json").write_text(json.dumps({"canary": "", "examples": examples}))
    return folder


def test_a_written_workload_is_read_back(tmp_path: Path) -> None:
    requests = [
        WorkloadRequest("a", 0.0, 3, prompt="Ein Bär, 熊?\nYes"),
        WorkloadRequest("b", 0.25, 7, prompt_tokens=12),
        WorkloadRequest("a", 0.0, 1, prompt_tokens=1, round=1),
    ]
    write(tmp_path / "new" / "w.jsonl", requests)
    assert read(tmp_path / "new" / "w.jsonl") == requests


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"tenant": "a", "arri', "line 2: not JSON, or cut off"),
        ("[" * 100_000, "line 2: not JSON, or cut off"),
        ("[1]", "line 2: expected an object"),
        (json.dumps({**GOOD, "promt": "x"}), "line 2: 'promt' is unknown; a request has tenant, arrival"),
        (json.dumps({"tenant": "a", "arrival": 1}), "line 2: 'output_tokens' is missing"),
        (json.dumps({**GOOD, "arrival": "soon"}), "line 2: 'arrival' is 'soon'"),
        (json.dumps({**GOOD, "output_tokens": True}), "line 2: 'output_tokens' is True"),
        (json.dumps({**GOOD, "output_tokens": 0}), "line 2: 'output_tokens' is 0"),
        (json.dumps({**GOOD, "arrival": -1}), "line 2: 'arrival' is -1"),
        (json.dumps({**GOOD, "arrival": float("nan")}), "line 2: 'arrival' is nan"),
        (json.dumps({**GOOD, "prompt": "x"}), "line 2: expected either"),
        (json.dumps({**GOOD, "prompt_tokens": 0}), "line 2: the prompt is empty"),
        (json.dumps({**GOOD, "tenant": ""}), "line 2: 'tenant' is empty"),
        (json.dumps({**GOOD, "arrival": 0.25}), "line 2: time goes backwards, from 0.5 s to 0.25 s"),
    ],
)
def test_the_error_names_the_wrong_line(tmp_path: Path, line: str, problem: str) -> None:
    file = tmp_path / "w.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    with pytest.raises(ConfigError, match=r"w\.jsonl") as caught:
        read(file)
    assert problem in str(caught.value)


def test_each_round_starts_at_time_zero_and_rounds_are_in_order(tmp_path: Path) -> None:
    file = tmp_path / "w.jsonl"
    file.write_text("\n".join(json.dumps({**GOOD, "round": n, "arrival": 1 / (n + 1)}) for n in (0, 1, 1, 0)))
    with pytest.raises(ConfigError, match="line 4: round 0 comes after round 1"):
        read(file)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe"])
def test_a_file_without_requests_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=r"w\.jsonl"):
        read(tmp_path / "w.jsonl")
    with pytest.raises(ConfigError, match="cannot read"):
        read(tmp_path / "none.jsonl")


def test_a_round_is_five_tasks_of_each_tenant(tasks: Path) -> None:
    requests = bbh(tasks, NAMES, rounds=2, output_tokens=16, seed=3)
    assert Counter((request.round, request.tenant) for request in requests) == {
        (number, name): 5 for number in range(2) for name in NAMES
    }
    for number in range(2):
        for name in NAMES:
            asked = [r.prompt or "" for r in requests if (r.round, r.tenant) == (number, name)]
            assert len({prompt.split(",")[0] for prompt in asked}) == 5
    assert {request.arrival for request in requests} == {0.0}
    assert bbh(tasks, NAMES, 2, 16, seed=3) == requests
    assert bbh(tasks, NAMES, 2, 16, seed=4) != requests


@pytest.mark.parametrize("content", ["", "[]", '{"examples": [{}]}', '{"examples": []}'])
def test_a_file_that_is_no_task_is_refused(tasks: Path, content: str) -> None:
    (tasks / "task_3.json").write_text(content)
    with pytest.raises(ConfigError, match=r"task_3\.json"):
        bbh(tasks, NAMES, 1, 16, seed=0)


def test_a_folder_without_tasks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tasks"):
        bbh(tmp_path, NAMES, 1, 16, seed=0)


@pytest.mark.parametrize("kind", [poisson, bursty])
def test_random_arrivals_have_their_rate_order_and_lengths(
    kind: Callable[[Sequence[str], float, float, int], list[WorkloadRequest]],
) -> None:
    requests = kind(NAMES, 1.0, 20_000.0, 1)
    # Bursts of forty requests, of which there are some five hundred, vary more than single requests.
    assert len(requests) == pytest.approx(20_000, rel=0.02 if kind is poisson else 0.2)
    arrivals = [request.arrival for request in requests]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] >= 0
    assert arrivals[-1] < 20_000
    assert {request.tenant for request in requests} == set(NAMES)
    lengths = Lengths()
    prompts = [request.prompt_tokens or 0 for request in requests]
    assert median(prompts) == pytest.approx(lengths.prompt_median, rel=0.1)
    assert min(prompts) >= 1
    assert max(prompts) <= lengths.prompt_max
    assert kind(NAMES, 1.0, 20_000.0, 1) == requests


def test_bursty_tenants_are_idle_most_of_the_time() -> None:
    def busy_share(requests: list[WorkloadRequest]) -> float:
        """Share of all tenants' seconds in which they sent a request."""
        return len({(r.tenant, int(r.arrival)) for r in requests}) / (len(NAMES) * 2000)

    assert busy_share(bursty(NAMES, 6.0, 2000.0, seed=1)) < 0.3
    assert busy_share(poisson(NAMES, 6.0, 2000.0, seed=1)) > 0.55


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
AZURE_LINES = [
    "2023-11-16 18:15:46.6805900,400,40",
    "2023-11-16 18:15:50.6805900,200,20",
    "2023-11-16 18:16:46.6805900,3,1",
]


def test_azures_trace_is_converted(tmp_path: Path) -> None:
    file = tmp_path / "azure.csv"
    file.write_text(AZURE + "\n".join(AZURE_LINES) + "\n")
    requests = Conversion(NAMES, seed=1, scale=0.1, speed=2.0).requests(file, TRACES["azure"])
    assert [(r.arrival, r.prompt_tokens, r.output_tokens) for r in requests] == [
        (0.0, 40, 4),
        (2.0, 20, 2),
        (30.0, 1, 1),
    ]
    assert {request.tenant for request in requests} <= set(NAMES)
    shorter = Conversion(NAMES, seed=1, scale=0.1, speed=2.0, seconds=30.0).requests(file, TRACES["azure"])
    assert shorter == requests[:2]


def test_burstgpts_trace_is_converted_without_failed_requests(tmp_path: Path) -> None:
    file = tmp_path / "burst.csv"
    file.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,Conversation log\n"
        "118,GPT-4,417,276,693,API log\n"
    )
    requests = Conversion(NAMES, seed=1).requests(file, TRACES["burstgpt"])
    assert [(r.arrival, r.prompt_tokens, r.output_tokens) for r in requests] == [
        (0.0, 472, 18),
        (113.0, 417, 276),
    ]


def test_some_tenants_send_more_requests_than_others(tmp_path: Path) -> None:
    file = tmp_path / "burst.csv"
    lines = [f"{second},10,10" for second in range(2000)]
    file.write_text("\n".join(["Timestamp,Request tokens,Response tokens", *lines]))
    requests = Conversion(NAMES, seed=1).requests(file, TRACES["burstgpt"])
    shares = Counter(request.tenant for request in requests)
    assert [name for name, _ in shares.most_common()] == NAMES


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("TIMESTAMP,ContextTokens\n", "no column 'GeneratedTokens'"),
        ("", "no column 'TIMESTAMP'"),
        (AZURE, "has no requests"),
        (AZURE + AZURE_LINES[0] + "\n2023-11-16 18:15", "line 3: cut off"),
        (AZURE + "yesterday,1,2\n", "line 2: Invalid isoformat"),
        (AZURE + "2023-11-16 18:15:46.6805900,1,many\n", "line 2: invalid literal"),
        (AZURE + "2023-11-16 18:15:46.6805900,1,-2\n", "line 2: -2 tokens"),
        (AZURE + "\n".join(reversed(AZURE_LINES)), "line 3: time goes backwards"),
    ],
)
def test_a_wrong_trace_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    file = tmp_path / "azure.csv"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"azure\.csv") as caught:
        Conversion(NAMES, seed=1).requests(file, TRACES["azure"])
    assert problem in str(caught.value)

"""Strategies run as real processes under one workload. A failure of one is recorded; the others continue."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from bench.comparison import comparison, greedy, run
from bench.comparison.measuring.recording import Recording, StrategyResult
from bench.comparison.measuring.replay import Endpoint
from bench.comparison.progress import ProgressListener
from bench.comparison.settings import RunSettings
from bench.comparison.strategies import strategies
from bench.comparison.strategies.deployment import Deployment, ServingSetup
from bench.comparison.strategies.strategies import Strategy
from control_plane.errors import ConfigError, FaaSMoEError
from control_plane.http import serving
from tests.support.paths import DEMO_MODEL

pytestmark = pytest.mark.slow

SETTINGS = RunSettings(
    strategies=["all"],
    shape="",
    model=str(DEMO_MODEL),
    tenants=2,
    workload="bbh",
    tasks=None,
    rounds=1,
    duration=10.0,
    rate=1.0,
    output_tokens=3,
    experts_per_function=[],
    threads=1,
    idle_timeout=60.0,
    memory_budget=None,
    dtypes=[],
    llama_server=None,
    seed=0,
)


class Lines(ProgressListener):
    """A progress listener that collects all lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def end(self, problem: str) -> None:
        self.lines.append(problem)


@asynccontextmanager
async def crashing(setup: ServingSetup) -> AsyncIterator[Deployment]:
    raise FaaSMoEError("it fell over")
    yield


@asynccontextmanager
async def babbling(setup: ServingSetup) -> AsyncIterator[Deployment]:
    """A server that answers each prompt with the same tokens."""

    async def complete(request: web.Request) -> web.Response:
        event = b'data: {"choices": [{"index": 0, "token_ids": [77]}]}\n\n'
        return web.Response(body=event * (await request.json())["max_tokens"])

    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    async with serving(app, "127.0.0.1", 0) as url:
        endpoint = Endpoint(str(url).rstrip("/"))
        yield Deployment(dict.fromkeys(setup.tenants, endpoint), [])


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for idle functions."""
    monkeypatch.setattr(comparison, "SETTLE_SECONDS", -60.0)
    monkeypatch.setattr(comparison, "IDLE_SECONDS", 0.1)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Strategy]:
    """Strategies by name: two real ones, and three that fail in different ways."""
    real = {name: strategies.STRATEGIES[name] for name in ("shared-model", "faasmoe-private")}
    huge = replace(real["shared-model"], name="baseline", needs=lambda sizes, tenants: 1 << 60)
    crash = Strategy("local", "Crashing", crashing, lambda sizes, tenants: 0)
    wrong = Strategy("faasmoe-shared", "Babbling", babbling, lambda sizes, tenants: 0)
    names = {"baseline": huge, "local": crash, "faasmoe-shared": wrong, **real}
    monkeypatch.setattr(strategies, "STRATEGIES", names)
    return names


@pytest.mark.usefixtures("_short", "known")
def test_a_run_measures_strategies_that_work_and_reports_those_that_fail(tmp_path: Path) -> None:
    folder, lines = tmp_path / "results", Lines()
    before = psutil.Process().children(recursive=True)
    run.begin(SETTINGS, folder, lines)
    assert psutil.Process().children(recursive=True) == before
    measured = Recording.load(folder).results
    problems = {name: one.problem for name, one in measured.items()}
    assert problems["baseline"].startswith("does not fit: it needs 1152921504.6 GB")
    assert problems["local"] == "it fell over"
    assert problems["faasmoe-shared"].startswith("answers wrongly: a token is ")
    assert set(lines.lines) >= set(problems.values())
    for name, roles in {
        "shared-model": {"full model"},
        "faasmoe-private": {"gateway", "function", "control plane"},
    }.items():
        one = measured[name]
        assert not one.problem
        assert [len(outcome.tokens) for outcome in one.outcomes] == [3] * 10
        assert {outcome.tenant for outcome in one.outcomes} == {"tenant-1", "tenant-2"}
        assert set(one.moments[-1].memory_bytes) == roles
        # Two control planes, each with two processes that encode prompts.
        assert one.moments[-1].processes.get("control plane", 6) == 6
        assert one.idle
        assert one.cached_bytes > 0
    calls = measured["faasmoe-private"].calls
    assert calls is not None
    assert calls.rows > calls.invocations > 0
    assert calls.sent_bytes > calls.received_bytes > 0


@pytest.mark.usefixtures("_short")
def test_a_resumed_run_measures_missing_strategies(
    tmp_path: Path, known: dict[str, Strategy], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_shortfall(*_: object) -> float:
        return 0.0

    monkeypatch.setattr(greedy, "shortfall", no_shortfall)
    folder = tmp_path / "results"
    settings = replace(SETTINGS, strategies=["faasmoe-shared", "local"])
    run.begin(settings, folder, ProgressListener())
    first = Recording.load(folder).results["faasmoe-shared"]
    assert len(first.outcomes) == 10
    known["local"] = replace(known["local"], serve=babbling)
    lines = Lines()
    run.resume(folder, lines)
    again = Recording.load(folder).results
    assert again["faasmoe-shared"] == first
    assert f"{first.title}: measured already" in lines.lines
    assert not again["local"].problem


def test_function_sizes_budgets_and_types_have_their_own_titles_and_keys() -> None:
    settings = replace(
        SETTINGS,
        strategies=["faasmoe-shared"],
        memory_budget=1_600_000_000,
        experts_per_function=[6],
        dtypes=["int4"],
    )
    titles = [task.title for task in settings.tasks_to_measure()]
    assert titles == [
        "FaaSMoE-Shared",
        "FaaSMoE-Shared, within 1.6 GB",
        "FaaSMoE-Shared, int4",
        "FaaSMoE-Shared, 6 experts a function",
    ]
    keys = [
        StrategyResult("s").key,
        StrategyResult("s", memory_budget=1_600_000_000).key,
        StrategyResult("s", dtype="int4").key,
        StrategyResult("s", "", 6).key,
    ]
    assert keys == ["s", "s-within-1600MB", "s-int4", "s-6"]


def test_wrong_settings_are_refused_before_anything_runs(tmp_path: Path) -> None:
    for wrong, message in [
        (replace(SETTINGS, workload="bursty", duration=1.0), "nobody asks for anything within 1 s"),
        (replace(SETTINGS, strategies=["vllm"]), "no strategy 'vllm'; there are all, baseline"),
        (replace(SETTINGS, dtypes=["int2"]), "no type 'int2' to measure; there are int8, int4"),
        (replace(SETTINGS, workload="rush-hour"), "no workload 'rush-hour'"),
        (replace(SETTINGS, tasks=str(tmp_path)), "has no tasks"),
        (replace(SETTINGS, shape="gpt-9", model=None), "no shape 'gpt-9'; there are "),
    ]:
        with pytest.raises(FaaSMoEError, match=message):
            run.begin(wrong, tmp_path / "results", ProgressListener())
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("kind", ["bbh", "poisson", "bursty"])
def test_workloads_are_made_by_name(kind: str) -> None:
    settings = replace(SETTINGS, workload=kind, duration=600.0, rate=2.0)
    requests = settings.requests()
    assert requests
    assert requests == settings.requests()
    assert settings.workload_description()
    # A tenant without requests is served nevertheless.
    assert settings.tenant_names(requests[:1]) == ["tenant-1", "tenant-2"]


def test_a_workload_from_a_file_has_its_own_tenants(tmp_path: Path) -> None:
    file = tmp_path / "w.jsonl"
    file.write_text('{"tenant": "a", "arrival": 0, "prompt_tokens": 3, "output_tokens": 2}\n')
    (request,) = replace(SETTINGS, workload=str(file)).requests()
    assert request.tenant == "a"
    assert replace(SETTINGS, workload=str(file)).tenant_names([request]) == ["a"]
    file.write_text("{}")
    with pytest.raises(ConfigError, match="line 1"):
        replace(SETTINGS, workload=str(file)).requests()

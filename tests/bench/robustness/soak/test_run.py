"""A short soak with real processes."""

import asyncio

import pytest

from bench.robustness.soak import run
from tests.support.paths import DEMO_MODEL

# A control plane starts slowly on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_short_soak_samples_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "BUSY_SECONDS", 4.0)
    result = asyncio.run(run.soak(DEMO_MODEL, 20.0, seed=0))
    assert result.unexpected == []
    assert set(result.sent) == {"chat", "completion", "stream", "cancelled stream", "bad request"}
    functions = {f"demo-l{layer:02}-e00-15" for layer in range(6)}
    assert {each.process for each in result.series} == {"control plane", "gateway", *functions}
    assert {each.measure.name for each in result.series} == {"memory", "threads", "open files"}
    samples = {each.process: len(each.points) for each in result.series}
    # Functions went to zero in the pauses, and the servers did not.
    assert samples["demo-l00-e00-15"] < samples["gateway"]

"""The whole system while functions scale to zero and back, and with memory for more or fewer experts."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from control_plane import up
from control_plane.errors import ConfigError
from functions.contract.secret import CALLER_HEADER, FunctionSecret
from tests.support.api.api_server import ApiClient, completion, eventually, serving
from tests.support.models.tiny_chat_model import EXPERTS

pytestmark = pytest.mark.slow


def text(api: ApiClient) -> str:
    answer = completion(api, max_tokens=12)
    assert answer.status == 200, answer.body
    generated: str = answer.json["choices"][0]["text"]
    return generated


def replicas(api: ApiClient) -> list[int]:
    return [function["replicas"] for function in api.status()["functions"]]


def actions(api: ApiClient, action: str) -> float:
    found = (
        value
        for (name, labels), value in api.metrics().items()
        if name == "faasmoe:scale_actions_total" and ("action", action) in labels
    )
    return next(found, 0.0)


@pytest.fixture
def expected_text(unsplit: Any, tokenizer: Any, expected: Callable[[list[int], int], str]) -> str:
    """The unsplit model's answer to the prompt of `text`."""
    return expected(tokenizer.encode("the cat"), 12)


def test_idle_functions_go_to_zero_and_the_next_request_wakes_them(
    chat_partition: Path, tmp_path: Path, expected_text: str
) -> None:
    with serving(chat_partition, tmp_path / "db", open=True, idle_timeout=0.3) as api:
        for wakes in range(2):
            assert text(api) == expected_text
            eventually(lambda: replicas(api), [0] * len(EXPERTS))
            # The gateway may have put some to sleep first; those may be started by their calls.
            assert actions(api, "wake") >= wakes
        memory = api.status()["memory"]
        assert (memory["overhead"], memory["experts"]) == (0, 0)
        assert memory["total"] == memory["control_plane"] > 0
        assert all(function["read_bytes"] for function in api.status()["functions"])


def test_scaling_and_limits_during_traffic_lose_no_request(
    chat_partition: Path, tmp_path: Path, expected_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = FunctionSecret("known to the test")
    monkeypatch.setattr(up, "random_function_secret", lambda: secret)
    with serving(chat_partition, tmp_path / "db", open=True) as api:
        status = api.status()
        gateway = ApiClient(URL(status["gateways"][0]["url"]))
        names = [function["function"] for function in status["functions"]]
        with ThreadPoolExecutor(4) as clients:
            answers = [clients.submit(text, api) for _ in range(12)]
            # Once per answer: more often, and the functions would only be starting.
            for number, answer in enumerate(as_completed(answers)):
                assert answer.result() == expected_text
                name = names[number % len(names)]
                limit = {"limit_bytes": 0 if number % 2 else 1 << 30}
                # A function that sleeps just now answers 503.
                residency = f"/function/{name}/_/residency"
                proof = {CALLER_HEADER: secret.caller_proof(name)}
                assert gateway.answer("PUT", residency, limit, **proof).status in (200, 503)
                scale = {"serviceName": name, "replicas": 0}
                assert gateway.answer("POST", f"/system/scale-function/{name}", scale).status == 202
        assert sum(function["cold_starts"] for function in api.status()["functions"]) > len(names)


def test_a_budget_is_divided_among_the_functions(
    chat_partition: Path, tmp_path: Path, expected_text: str
) -> None:
    def served(budget: int) -> Any:
        return serving(chat_partition, tmp_path / "db", open=True, memory_budget=budget)

    with pytest.raises(ConfigError, match="is too little; at least") as refused:
        served(10**6).__enter__()
    least = int(str(refused.value).split("at least ")[1].split("MB")[0]) * 10**6
    budget = least + 10**8
    with served(budget) as api:
        assert text(api) == expected_text
        memory = api.status()["memory"]
        assert memory["budget"] == budget
        assert memory["least"] <= budget
        assert memory["total"] == memory["control_plane"] + memory["overhead"] + memory["experts"] <= budget
        # The budget is large enough for all experts, so each function may hold its whole block.
        functions = {function["function"]: function for function in api.status()["functions"]}
        expert = next(f["resident_bytes"] // f["resident_experts"] for f in functions.values())
        limits = [function["limit_bytes"] for function in functions.values()]
        assert limits == [number * expert for number in EXPERTS]
        assert actions(api, "limit") >= len(EXPERTS)

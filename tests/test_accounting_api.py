"""What is booked to tenants, also to those who go away, and when the server is killed."""

IMPORTS
pytest_plugins = "tests.chat_fixtures"


def test_what_is_booked(server: ApiClient, new_tenant: NewTenant, database: Path) -> None:
    names = [f"booked-{number}" for number in range(3)]
    clients = [new_tenant(name) for name in names]
    eventually(server.engine, IDLE)
    before = invocations(server)

    def ask(number: int) -> Any:
        fields = {"max_tokens": 5 + number, "n": 2, "prompt": ["the cat", f"the {number}"]}
        return completion(clients[number % 3], **fields).json["usage"]

    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(ask, range(12)))
    calls = 0.0
    for number, name in enumerate(names):
        mine = answers[number::3]
        booked = usage_of(database, name)
        assert booked.requests == len(mine)
        assert booked.prompt_tokens == sum(usage["prompt_tokens"] for usage in mine)
        assert booked.generated_tokens == sum(usage["completion_tokens"] for usage in mine)
        experts = [usage["experts"] for usage in mine]
        assert booked.expert_invocations == pytest.approx(sum(e["invocations"] for e in experts), abs=0.01)
        assert booked.expert_seconds == pytest.approx(sum(e["seconds"] for e in experts), abs=1e-4)
        calls += booked.expert_invocations
    # What all of them are booked is what the functions were called.
    assert calls == pytest.approx(invocations(server) - before, abs=0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_cancelled_request_has_used_is_booked(
    server: ApiClient, new_tenant: NewTenant, database: Path, stream: bool
) -> None:
    name = f"quitter-{stream}"
    api = new_tenant(name)
    body = {**ASK, "max_tokens": 3000, "ignore_eos": True, "stream": stream}
    connection = api.send("POST", COMPLETION, body)
    eventually(lambda: server.engine()["running"], 1)
    calls = invocations(server)
    eventually(lambda: invocations(server) > calls + 30, True)
    connection.close()
    eventually(lambda: usage_of(database, name).requests, 1)
    booked = usage_of(database, name)
    assert booked.prompt_tokens == 2
    assert 1 <= booked.generated_tokens < 3000
    assert booked.expert_invocations > 0


def invocations(api: ApiClient) -> int:
    return sum(function["invocations"] for function in api.status()["functions"])

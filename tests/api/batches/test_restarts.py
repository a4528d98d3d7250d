"""A batch goes on when its server is started again, even after a kill."""

import json
import signal
from pathlib import Path

import pytest
from yarl import URL

from control_plane.api.batches.runner import CONCURRENT_LINES
from tests.support.api.api_server import ApiClient, add_tenant, eventually, openai_client, serving, usage_of
from tests.support.api.batches import PROMPT, answers, begin, client_of, completed, ended, line
from tests.support.command_line import running_command

pytestmark = pytest.mark.slow


def test_what_is_not_done_within_the_window_expires(chat_partition: Path, tmp_path: Path) -> None:
    database = tmp_path / "faasmoe.db"
    key = add_tenant(database, "acme", rpm=1)
    with serving(chat_partition, database) as server, openai_client(server, key) as client:
        batch = begin(client, [line(str(n)) for n in range(3)])
        eventually(lambda: completed(client, batch) >= 1, True)
    (state,) = database.with_name(f"{database.name}.batches").glob("acme/batch-*.json")
    record = json.loads(state.read_text())
    state.write_text(json.dumps({**record, "expires": record["created"]}))
    with serving(chat_partition, database) as server, openai_client(server, key) as client:
        batch = ended(client, batch)
        assert (batch.status, bool(batch.expired_at)) == ("expired", True)
        assert len(answers(client, batch.output_file_id)) == 1


def test_a_batch_goes_on_after_a_kill(chat_partition: Path, tmp_path: Path) -> None:
    """Every line has exactly one answer, the one that a single request gets."""
    database = tmp_path / "faasmoe.db"
    key = add_tenant(database, "acme")
    command = ("up", chat_partition, "--port", 0, "--database", database, "--keys-only")
    total = 30
    with running_command(*command, temporary=tmp_path) as server:
        api = ApiClient(URL(server.wait_for(r"serving on (\S+);")), key)
        with client_of(api) as client:
            batch = begin(
                client, [line(str(n), max_tokens=40, seed=n, ignore_eos=True) for n in range(total)]
            )
            eventually(lambda: completed(client, batch) >= 5, True)
            before = completed(client, batch)
            assert server.end(signal.SIGKILL) == -signal.SIGKILL
    assert before < total
    (partial,) = database.with_name(f"{database.name}.batches").glob("acme/*.partial")
    with partial.open("ab") as file:
        file.write(b'{"id": "half a li')
    with running_command(*command, temporary=tmp_path) as server:
        api = ApiClient(URL(server.wait_for(r"serving on (\S+);")), key)
        with client_of(api) as client:
            found = ended(client, batch)
            assert found.status == "completed"
            assert found.request_counts
            assert found.request_counts.to_dict() == {"total": total, "completed": total, "failed": 0}
            good = answers(client, found.output_file_id)
            assert set(good) == {str(n) for n in range(total)}
            for n in (0, total - 1):
                body = {**PROMPT, "max_tokens": 40, "seed": n, "extra_body": {"ignore_eos": True}}
                single = client.completions.create(**body)
                assert good[str(n)]["response"]["body"]["choices"][0]["text"] == single.choices[0].text
    # Lines that were written are not done again. Those in the engine then may be booked already.
    assert usage_of(database, "acme").requests <= total + CONCURRENT_LINES

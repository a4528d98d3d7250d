"""GuideLLM, with synthetic prompts."""

import json
from pathlib import Path

from tests.clients.apart.programs import run
from tests.clients.conftest import MODEL, Server

NUM_REQUESTS = 12
NUM_TOKENS = 8


def test_a_benchmark(server: Server, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    run(
        *("guidellm", "run", "--disable-console-interactive"),
        *("--backend", f"kind=openai_http,target={server.url},api_key={server.key},model={MODEL}"),
        *("--tokenizer", f"kind=huggingface_auto,model={server.checkpoint}"),
        *("--data", f"kind=synthetic_text,prompt_tokens=32,output_tokens={NUM_TOKENS}"),
        *("--profile", "kind=concurrent,streams=4"),
        *("--constraint", f"kind=max_requests,count={NUM_REQUESTS}"),
        *("--output", f"kind=json,path={report}"),
        server=server,
        folder=tmp_path,
    )
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    metrics = benchmark["metrics"]
    assert metrics["request_totals"] == {
        "successful": NUM_REQUESTS,
        "incomplete": 0,
        "errored": 0,
        "total": NUM_REQUESTS,
    }
    assert metrics["output_token_count"]["successful"]["min"] == NUM_TOKENS
    assert metrics["output_token_count"]["successful"]["max"] == NUM_TOKENS

"""How tokens are chosen and where answers end, over HTTP, against the unsplit model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from control_plane.partition.partitioner import partition
from tests.support.api.api_server import COMPLETION, ApiClient, serving, usage_of
from tests.support.models.chat_fixtures import NewTenant
from tests.support.models.tiny_chat_model import END, GRANULARITY, NAME

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
MESSAGES: Any = [{"role": "user", "content": "who sat?"}]
GREEDY: Any = {"prompt": "the cat", "max_tokens": 24, "temperature": 0}
END_ID = 0


def complete(api: ApiClient, engine: dict[str, Any], **changes: Any) -> tuple[str, str, int]:
    """The text, the reason of its end and the number of tokens; a stream must have the same."""
    body = {**GREEDY, **changes, **engine}
    whole = api.post(COMPLETION, **body)
    (choice,) = whole["choices"]
    events = api.stream(COMPLETION, **body)
    assert "".join(each["text"] for event in events for each in event["choices"]) == choice["text"]
    assert events[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    return choice["text"], choice["finish_reason"], whole["usage"]["completion_tokens"]


def test_a_bias_ends_an_answer(api: ApiClient) -> None:
    assert complete(api, {"logit_bias": {END_ID: 100}}) == ("", "stop", 1)


def test_an_answer_has_min_tokens(api: ApiClient, expected: Any, tokenizer: Any) -> None:
    """Without them it would end at once, whichever way."""
    prompt_ids = tokenizer(GREEDY["prompt"])["input_ids"]
    five = expected(prompt_ids, 5)
    for ends in (
        {"logit_bias": {END_ID: 100}},
        {"logit_bias": {END_ID: 100}, "ignore_eos": True, "stop_token_ids": [END_ID]},
    ):
        assert complete(api, {**ends, "min_tokens": 5}) == (five, "stop", 6)
    assert complete(api, {"min_tokens": 5}, stop=[five[:1]])[2] > 5


def test_stop_strings_name_tokens(api: ApiClient) -> None:
    """The end token is ignored, and has no text, but ends the answer by its name."""
    always = {"logit_bias": {END_ID: 100}, "ignore_eos": True}
    assert complete(api, always) == ("", "length", 24)
    assert complete(api, always, stop=["no", END]) == ("", "stop", 1)
    assert complete(api, {**always, "include_stop_str_in_output": True}, stop=END) == (END, "stop", 1)
    assert complete(api, {**always, "min_tokens": 3}, stop=END)[1:] == ("stop", 4)


def test_special_tokens_are_shown(api: ApiClient) -> None:
    always = {"logit_bias": {END_ID: 100}, "ignore_eos": True, "skip_special_tokens": False}
    assert complete(api, always) == (END * 24, "length", 24)
    assert complete(api, always, stop=END * 2)[:2] == ("", "stop")
    answer = api.post(CHAT, messages=MESSAGES, max_tokens=2, logprobs=True, **always)
    assert answer["choices"][0]["message"]["content"] == END * 2
    entries = answer["choices"][0]["logprobs"]["content"]
    assert [(entry["token"], entry["bytes"]) for entry in entries] == [(END, list(END.encode()))] * 2


def test_stop_tokens(api: ApiClient, expected: Any, tokenizer: Any, unsplit: Any) -> None:
    prompt_ids = tokenizer(GREEDY["prompt"])["input_ids"]
    output = unsplit.generate(torch.tensor([prompt_ids]), max_new_tokens=24, do_sample=False)
    token_ids = output[0, len(prompt_ids) :].tolist()
    stop = token_ids[7]
    first = token_ids.index(stop)
    text, reason, number = complete(api, {"stop_token_ids": [stop]})
    assert (text, reason, number) == (tokenizer.decode(token_ids[:first]), "stop", first + 1)


@pytest.mark.parametrize("name", ["logit_bias", "stop_token_ids"])
@pytest.mark.parametrize("token_id", [-1, 100_000])
def test_unknown_tokens(api: ApiClient, name: str, token_id: int) -> None:
    value: Any = {token_id: 1} if name == "logit_bias" else [token_id]
    answer = api.answer("POST", COMPLETION, {**GREEDY, name: value})
    assert (answer.status, answer.error["param"]) == (400, name)


def logprobs_of(unsplit: Any, token_ids: list[int]) -> list[float]:
    """The unsplit model's log-probabilities of these tokens, from the second on."""
    rows = unsplit(torch.tensor([token_ids])).logits[0].log_softmax(-1)
    return [float(row[token]) for row, token in zip(rows[:-1], token_ids[1:], strict=True)]


def test_log_probabilities_are_the_model_s_own(api: ApiClient, tokenizer: Any, unsplit: Any) -> None:
    """They are, whatever changes the choice, in chats and completions, whole or streamed, for each answer."""
    engine = {"frequency_penalty": 1.5, "presence_penalty": 1.0, "logit_bias": {5: 3}, "min_tokens": 6}
    asked: Any = {"max_tokens": 8, "n": 2, "seed": 3, "temperature": 1, **engine}
    asked |= {"return_token_ids": True}
    completed = {**asked, "prompt": "the cat", "logprobs": 2, "echo": True}
    prompt_ids = tokenizer("the cat")["input_ids"]
    for choice in api.post(COMPLETION, **completed)["choices"]:
        token_ids = [*prompt_ids, *choice["token_ids"]]
        wanted = logprobs_of(unsplit, token_ids)
        assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(wanted, abs=1e-3)
    chat = {**asked, "messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    chat_ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    streamed: list[list[Any]] = [[], []]
    for event in api.stream(CHAT, **chat):
        for choice in event["choices"]:
            streamed[choice["index"]] += (choice["logprobs"] or {}).get("content", [])
    for choice, entries in zip(api.post(CHAT, **chat)["choices"], streamed, strict=True):
        wanted = logprobs_of(unsplit, [*chat_ids, *choice["token_ids"]])[len(chat_ids) - 1 :]
        assert choice["logprobs"]["content"] == entries
        assert [entry["logprob"] for entry in entries] == pytest.approx(wanted, abs=1e-3)


def test_several_answers_compute_their_prompt_once(new_tenant: NewTenant, database: Path) -> None:
    """The functions count the rows; the tenant pays for the prompt once."""
    api = new_tenant("many")
    words = " ".join(["the cat sat on the mat"] * 30)

    def rows() -> float:
        return sum(
            value for (name, _), value in api.metrics().items() if name.endswith("function_rows_total")
        )

    def cost(number: int) -> tuple[int, float]:
        before = rows()
        answer = api.post(COMPLETION, prompt=words, max_tokens=3, n=number, seed=1, ignore_eos=True)
        return answer["usage"]["prompt_tokens"], rows() - before

    prompt, one = cost(1)
    prompt_of_four, four = cost(4)
    assert prompt == prompt_of_four > 100
    assert four < 1.2 * one
    assert usage_of(database, "many").prompt_tokens == 2 * prompt


def test_special_tokens_are_added_to_a_text_if_wanted(chat_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(chat_checkpoint, tmp_path / NAME)
    file = checkpoint / "tokenizer.json"
    end, text = {"SpecialToken": {"id": END, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": [end, text],
        "pair": [end, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {END: {"id": END, "ids": [END_ID], "tokens": [END]}},
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": processor}))
    partition(checkpoint, tmp_path / "partition", granularity=GRANULARITY)
    with serving(tmp_path / "partition", tmp_path / "db", open=True) as api:

        def prompt_tokens(**engine: Any) -> int:
            return int(api.post(COMPLETION, **{**GREEDY, **engine})["usage"]["prompt_tokens"])

        assert prompt_tokens() == prompt_tokens(add_special_tokens=True) == 3
        assert prompt_tokens(add_special_tokens=False) == 2

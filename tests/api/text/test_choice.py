"""A choice while it is generated: one piece per token, an end, and log-probabilities."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from control_plane.api.openai.requests import parse_chat, parse_completion
from control_plane.api.text.choice import LEAST_LOGPROB, Choice, Piece, TokenEntry
from control_plane.api.text.codec import TextCodec
from control_plane.api.text.request import SamplingDefaults
from control_plane.engine.state.sequence import FinishReason, Generated, Sequence, TokenLogprob
from control_plane.partition.checkpoint.stored_tokenizer import ModelTokenizer
from tests.api.text.test_codec import FALLBACK
from tests.support.paths import DEMO_MODEL

DEMO: Any = AutoTokenizer.from_pretrained(DEMO_MODEL)
CODEC = TextCodec(ModelTokenizer.of(DEMO), len(DEMO))
END = DEMO.convert_tokens_to_ids("<|im_end|>")
OHM = DEMO.encode("\N{OHM SIGN}")
"""The tokens of a character with three bytes: one per byte."""
PROMPT = "it came to"


def logprob(token_id: int, value: float = -0.5, *others: tuple[int, float]) -> TokenLogprob:
    top = sorted([(token_id, value), *others], key=lambda pair: -pair[1])
    return TokenLogprob(token_id, value, tuple(top))


def make_choice(index: int = 0, fields: Any = (), **body: Any) -> Choice:
    """A completion's choice, whose sequence has the prompt log-probabilities that an engine would report.

    `fields` are those of the `GenerationRequest`.
    """
    request = replace(parse_completion({"prompt": PROMPT, **body}), **dict(fields))
    prompt = request.prompts[index // request.n]
    prompt_ids = prompt if isinstance(prompt, list) else DEMO.encode(prompt)
    sequence = Sequence("id", "tenant", prompt_ids, request.sampling_params(100, 0, SamplingDefaults()))
    if sequence.params.prompt_logprobs:
        sequence.prompt_logprobs = [
            logprob(token_id, -number / 8) for number, token_id in enumerate(prompt_ids)
        ][1:]
    return Choice(CODEC, request, sequence, index)


def steps(token_ids: list[int], reason: FinishReason, logprobs: bool = False) -> list[Generated]:
    """The tokens as the engine reports them; the last one has the reason."""
    return [
        Generated(
            token_id, logprob(token_id) if logprobs else None, reason if number == len(token_ids) else None
        )
        for number, token_id in enumerate(token_ids, start=1)
    ]


def generate(choice: Choice, generated: list[Generated]) -> list[Piece]:
    """The pieces of a choice for these tokens, until one ends it."""
    pieces = []
    for step in generated:
        pieces.append(choice.add(step))
        if pieces[-1].finish_reason:
            break
    return pieces


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def entries_of(pieces: list[Piece]) -> list[TokenEntry]:
    return [entry for piece in pieces for entry in piece.logprobs]


def test_every_token_makes_a_piece() -> None:
    choice = make_choice()
    token_ids = [*DEMO.encode(" pass"), *OHM, END]
    pieces = generate(choice, steps(token_ids, FinishReason.STOP))
    assert [piece.text for piece in pieces] == [" pass", "", "", "\N{OHM SIGN}", ""]
    assert [piece.finish_reason for piece in pieces] == [None] * 4 + [FinishReason.STOP]
    assert (choice.num_tokens, choice.stopped) == (5, False)


def test_an_unfinished_character_comes_with_the_last_piece() -> None:
    pieces = generate(make_choice(logprobs=0), steps(OHM[:2], FinishReason.LENGTH, logprobs=True))
    assert [piece.text for piece in pieces] == ["", "\ufffd"]
    assert [entry.text for entry in entries_of(pieces)] == ["", "\ufffd"]


def test_a_stop_string_ends_the_answer() -> None:
    choice = make_choice(stop=["to pass", "never"])
    token_ids = DEMO.encode(" it came to pass that it came")
    pieces = generate(choice, steps(token_ids, FinishReason.LENGTH))
    assert text_of(pieces) == " it came "
    assert pieces[-1].finish_reason == FinishReason.STOP
    assert choice.stopped
    assert DEMO.decode(token_ids[: choice.num_tokens]) == " it came to pass"
    assert len(pieces) == choice.num_tokens


def test_text_held_back_for_a_stop_string_comes_at_the_end() -> None:
    choice = make_choice(stop="to pass away")
    pieces = generate(choice, steps(DEMO.encode(" it came to pass"), FinishReason.LENGTH))
    assert text_of(pieces) == " it came to pass"
    assert pieces[-1].finish_reason == FinishReason.LENGTH
    assert not choice.stopped


def test_a_stop_string_in_the_last_token() -> None:
    choice = make_choice(stop="pass")
    pieces = generate(choice, steps(DEMO.encode(" to pass"), FinishReason.LENGTH))
    assert (text_of(pieces), pieces[-1].finish_reason) == (" to ", FinishReason.STOP)


@given(
    st.text("it came\N{OHM SIGN}", max_size=20), st.lists(st.text("it c", min_size=1, max_size=3), max_size=2)
)
def test_text_and_end(text: str, stops: list[str]) -> None:
    token_ids = [*DEMO.encode(text), END]
    pieces = generate(make_choice(stop=stops), steps(token_ids, FinishReason.STOP))
    places = [text.find(stop) for stop in stops if stop in text]
    assert text_of(pieces) == (text[: min(places)] if places else text)
    assert pieces[-1].finish_reason == FinishReason.STOP


@pytest.mark.parametrize("prompt", [PROMPT, DEMO.encode(PROMPT)])
def test_echo_begins_with_the_prompt(prompt: Any) -> None:
    pieces = generate(make_choice(prompt=prompt, echo=True), steps(DEMO.encode(" pass"), FinishReason.LENGTH))
    assert text_of(pieces) == "it came to pass"
    assert entries_of(pieces) == []


def test_a_stop_string_in_the_echoed_prompt_ends_nothing() -> None:
    choice = make_choice(echo=True, stop="came")
    pieces = generate(choice, steps(DEMO.encode(" pass"), FinishReason.LENGTH))
    assert (text_of(pieces), pieces[-1].finish_reason) == ("it came to pass", FinishReason.LENGTH)


def test_each_choice_echoes_its_own_prompt() -> None:
    prompts = ["it came", "to pass"]
    for index, prompt in enumerate([*prompts[:1] * 2, *prompts[1:] * 2]):
        choice = make_choice(index, prompt=prompts, n=2, echo=True)
        assert choice.add(Generated(END, None, FinishReason.STOP)).text == prompt


def test_an_echoed_prompt_without_an_answer() -> None:
    choice = make_choice(echo=True, logprobs=1, max_tokens=0)
    piece = choice.add(Generated(None, None, FinishReason.LENGTH))
    assert (piece.text, piece.finish_reason, choice.num_tokens) == (PROMPT, FinishReason.LENGTH, 0)
    assert [entry.token_id for entry in piece.logprobs] == DEMO.encode(PROMPT)
    assert [entry.logprob for entry in piece.logprobs] == [None, -0.125, -0.25]
    assert piece.logprobs[0].top == ()


@given(st.text(min_size=1, max_size=12), st.text(max_size=12))
@example(
    "0", "\N{REPLACEMENT CHARACTER}"
)  # which is held back, as if it were unfinished, until the end token
def test_text_offsets_are_positions_in_the_text(prompt: str, answer: str) -> None:
    choice = make_choice(prompt=prompt, echo=True, logprobs=1)
    token_ids = [*DEMO.encode(answer), END]
    pieces = generate(choice, steps(token_ids, FinishReason.STOP, logprobs=True))
    text, entries = text_of(pieces), entries_of(pieces)
    assert text == prompt + answer
    assert "".join(entry.text for entry in entries) == text
    for entry in entries:
        assert text[entry.text_offset :].startswith(entry.text)
    assert b"".join(entry.raw for entry in entries) == text.encode()
    assert [entry.token_id for entry in entries] == DEMO.encode(prompt) + token_ids


def test_offsets_without_echo_begin_at_the_answer() -> None:
    pieces = generate(
        make_choice(logprobs=0), steps(DEMO.encode(" to pass"), FinishReason.LENGTH, logprobs=True)
    )
    assert [(entry.text_offset, entry.text) for entry in entries_of(pieces)] == [(0, " to"), (3, " pass")]


def test_alternatives_are_texts() -> None:
    token_id, other = DEMO.encode(" pass")[0], DEMO.encode(" the")[0]
    generated = logprob(token_id, -1.5, (other, -0.25), (END, -3.0), (OHM[0], float("-inf")))
    (entry,) = make_choice(logprobs=3).add(Generated(token_id, generated)).logprobs
    assert (entry.text, entry.logprob, entry.raw) == (" pass", -1.5, b" pass")
    assert [(top.text, top.logprob) for top in entry.top] == [
        (" the", -0.25),
        (" pass", -1.5),
        ("<|im_end|>", -3.0),
        ("\ufffd", LEAST_LOGPROB),
    ]
    assert entry.top[-1].raw == "\N{OHM SIGN}".encode()[:1]


@pytest.mark.parametrize(("is_chat", "text"), [(False, " cat"), (True, "cat")])
def test_a_completion_continues_a_text_and_a_chat_begins_one(is_chat: bool, text: str) -> None:
    the, cat = map(FALLBACK.tokenizer.vocabulary().__getitem__, ("▁the", "▁cat"))
    request = (
        parse_chat({"messages": [{"role": "user", "content": "the"}]})
        if is_chat
        else parse_completion({"prompt": [the]})
    )
    sequence = Sequence("id", "tenant", [the], request.sampling_params(100, 0, SamplingDefaults()))
    pieces = generate(Choice(FALLBACK, request, sequence, 0), steps([cat], FinishReason.LENGTH))
    assert text_of(pieces) == text


START = DEMO.convert_tokens_to_ids("<|im_start|>")
PASS = DEMO.encode(" pass")[0]
SHOWN = {"skip_special_tokens": False}
INCLUDED = {"include_stop": True}


@pytest.mark.parametrize(
    ("fields", "stop", "text"),
    [
        pytest.param({}, [], " to", id="an end token has no text"),
        pytest.param({}, ["<|im_end|>"], " to", id="a stop string that is a token"),
        pytest.param(
            SHOWN, [], " to<|im_start|>", id="as in vLLM, the token that ends an answer is left out"
        ),
        pytest.param(SHOWN, ["<|im_start|>"], " to", id="a stop string in the text of a token"),
        pytest.param(INCLUDED, [], " to", id="only what has a text is included"),
        pytest.param(INCLUDED, ["<|im_end|>"], " to<|im_end|>", id="the stop string is included"),
        pytest.param(INCLUDED, ["<|im_start|>"], " to", id="another token is not"),
        pytest.param(SHOWN | INCLUDED, [], " to<|im_start|><|im_end|>", id="everything"),
        pytest.param(SHOWN | INCLUDED, ["<|im_end|>"], " to<|im_start|><|im_end|>", id="not twice"),
        pytest.param(SHOWN | INCLUDED, ["<|im_start|>"], " to<|im_start|>", id="included by its text"),
    ],
)
def test_special_tokens_and_the_end(fields: dict[str, bool], stop: list[str], text: str) -> None:
    choice = make_choice(fields=fields, stop=stop, logprobs=0)
    token_ids = [*DEMO.encode(" to"), START, END]
    pieces = generate(choice, steps(token_ids, FinishReason.STOP, logprobs=True))
    assert (text_of(pieces), pieces[-1].finish_reason) == (text, FinishReason.STOP)
    for entry in entries_of(pieces):
        name = DEMO.decode([entry.token_id])
        is_shown = not fields.get("skip_special_tokens", True) or entry.token_id not in (START, END)
        assert (entry.text, entry.raw) == ((name, name.encode()) if is_shown else ("", b""))


@pytest.mark.parametrize(
    ("fields", "text"), [({}, " to"), (INCLUDED, " to pass")], ids=["left out", "included"]
)
def test_the_text_of_a_stop_token(fields: dict[str, bool], text: str) -> None:
    """Its log-probability is reported either way; a character before it that stays unfinished is text."""
    pieces = generate(
        make_choice(fields=fields, logprobs=0),
        steps([*DEMO.encode(" to"), PASS], FinishReason.STOP, logprobs=True),
    )
    assert text_of(pieces) == text
    assert [entry.text for entry in entries_of(pieces)] == [" to", " pass"]
    unfinished = generate(make_choice(fields=fields), steps([*OHM[:2], PASS], FinishReason.STOP))
    assert text_of(unfinished) == ("\ufffd pass" if fields else "\ufffd")


def test_a_stop_token_s_text_ends_no_answer_at_its_limit() -> None:
    pieces = generate(make_choice(), steps([*DEMO.encode(" to"), PASS], FinishReason.LENGTH))
    assert text_of(pieces) == " to pass"


@pytest.mark.parametrize(
    ("least", "text"), [(0, " it "), (2, " it "), (3, " it came to pass and it "), (9, None)]
)
def test_no_stop_string_ends_an_answer_before_min_tokens(least: int, text: str | None) -> None:
    whole = " it came to pass and it came to pass"
    token_ids = DEMO.encode(whole)
    assert [DEMO.decode([token_id]) for token_id in token_ids[:4]] == [" it", " came", " to", " pass"]
    choice = make_choice(fields={"min_tokens": least}, stop="came to")
    pieces = generate(choice, steps(token_ids, FinishReason.LENGTH))
    assert text_of(pieces) == (whole if text is None else text)
    assert choice.stopped is (text is not None)


def test_an_echoed_prompt_shows_special_tokens_if_the_answer_does() -> None:
    prompt = [START, *DEMO.encode("it came")]
    for fields, text in (({}, "it came"), (SHOWN, "<|im_start|>it came")):
        choice = make_choice(fields=fields, prompt=prompt, echo=True, logprobs=0)
        (piece,) = generate(choice, steps([END], FinishReason.STOP, logprobs=True))
        assert piece.text == text
        assert "".join(entry.text for entry in piece.logprobs[:-1]) == text

"""A model's format, from its chat template and tokenizer to the pieces of an answer."""

import json
from dataclasses import replace
from typing import Any

import pytest

from control_plane.api.text.request import (
    Chat,
    Structure,
    ToolUse,
)
from control_plane.api.tools.formats.families import tool_format
from control_plane.api.tools.formats.hermes import Hermes
from control_plane.api.tools.formats.mistral import Mistral
from control_plane.api.tools.formats.plain import Plain
from control_plane.api.tools.formats.qwen_coder import QwenCoder
from control_plane.api.tools.thinking import thinking_marks
from control_plane.engine.state.sequence import FinishReason
from tests.support.api.tool_answers import MESSAGES, TOOLS, Answers
from tests.support.models import tool_models

TEMPLATES = [
    tool_models.QWEN3,
    tool_models.QWEN3_THINKING,
    tool_models.QWEN3_CODER,
    tool_models.MISTRAL,
    tool_models.MISTRAL_NEW,
    tool_models.PLAIN,
]


AUTO = ToolUse(TOOLS)
CALL = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'


def test_formats_are_recognised_by_the_chat_template() -> None:
    kinds = [type(tool_format(template)) for template in TEMPLATES]
    assert kinds == [Hermes, Hermes, QwenCoder, Mistral, Mistral, Plain]
    assert [thinking_marks(template) is not None for template in TEMPLATES] == [True, True] + [False] * 4


@pytest.mark.parametrize(
    ("template", "logged"),
    [
        (tool_models.QWEN3, ["of Hermes, Qwen2.5 and Qwen3, and thinking is between <think> and </think>"]),
        (tool_models.PLAIN, ["of JSON without marks, and thinking is not marked"]),
        ("", []),
    ],
)
def test_the_log_names_the_format(template: str, logged: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        Answers(template)
    assert caplog.messages == [f"tool calls have the format {each}" for each in logged]


def test_thinking_is_apart_from_the_text() -> None:
    answers = Answers(tool_models.QWEN3)
    written = "<think>\nSo </thin\nindeed.\n</think>\n\nYes.\n"
    assert answers.message(written) == ("So </thin\nindeed.", "Yes.\n", [], "stop")
    assert answers.message("No <think>ing</think>.") == ("", "No <think>ing</think>.", [], "stop")
    assert answers.message("<think>On and on ", end=False) == ("On and on", "", [], "length")
    streamed = [piece.reasoning for piece in answers.pieces("<think>ab c</think>") if piece.reasoning]
    assert streamed == ["a", "b", " c"]


@pytest.mark.parametrize("all_special", [False, True])
def test_calls_follow_thinking(all_special: bool) -> None:
    answers = Answers(tool_models.QWEN3, all_special=all_special)
    assert answers.message(f"<think>\nA\n</think>\n\n{CALL}\n{CALL}", AUTO) == (
        "A",
        "",
        [("time", {}), ("time", {})],
        "tool_calls",
    )
    assert answers.message(f"Now:\n{CALL}", AUTO) == ("", "Now:", [("time", {})], "tool_calls")


def test_the_prompt_may_open_the_thinking() -> None:
    answers = Answers(tool_models.QWEN3_THINKING)
    assert answers.message("A\n</think>\n\nYes.") == ("A", "Yes.", [], "stop")
    # Thinking that the prompt has ended, and a mark in the user's own message, open none.
    answers = Answers(tool_models.QWEN3, enable_thinking=False)
    assert answers.message("Yes </think>.") == ("", "Yes </think>.", [], "stop")


def test_a_message_that_is_continued_may_be_within_thinking() -> None:
    answers = Answers(tool_models.QWEN3)
    prompts = [
        (Chat([*MESSAGES, {"role": "assistant", "content": text}], continue_final_message=True),)
        for text in ("<think>A", "<think>A</think>B")
    ]
    assert answers.message("C</think>D", prompts=prompts[0]) == ("C", "D", [], "stop")
    assert answers.message("C</think>D", prompts=prompts[1]) == ("", "C</think>D", [], "stop")


def test_an_answer_with_a_structure_has_no_thinking() -> None:
    answers = Answers(tool_models.QWEN3_THINKING)
    assert answers.message("{}", structure=Structure("json_object", "field")) == ("", "{}", [], "stop")


def test_text_is_not_searched_for_calls_without_tools() -> None:
    answers = Answers(tool_models.QWEN3)
    assert answers.message(CALL) == ("", CALL, [], "stop")


def test_special_marks_are_seen_and_never_shown() -> None:
    answers = Answers(tool_models.MISTRAL_NEW)
    written = 'Yes[TOOL_CALLS]weather[ARGS]{"city": "é"}'
    assert answers.message(written, AUTO) == ("", "Yes", [("weather", {"city": "é"})], "tool_calls")
    assert answers.message(written[:-1], AUTO, end=False) == ("", 'Yesweather{"city": "é"', [], "length")
    assert answers.message(f"a[ARGS]b{written}") == ("", 'abYesweather{"city": "é"}', [], "stop")
    assert answers.message("a[ARGS]b", AUTO) == ("", "ab", [], "stop")


def test_a_cut_call_is_text_and_no_call() -> None:
    answers = Answers(tool_models.QWEN3)
    for end in range(1, len(CALL) - len("\n</tool_call>")):
        assert answers.message(CALL[:end], AUTO, end=False) == ("", CALL[:end], [], "length")
    assert answers.message(CALL + CALL[:30], AUTO, end=False) == ("", CALL[:30], [("time", {})], "length")


def test_an_answer_that_may_not_call_several_stops_after_one() -> None:
    answers = Answers(tool_models.QWEN3)
    use = replace(AUTO, parallel=False)
    pieces = answers.pieces(f"{CALL}\n{CALL}", use)
    assert [part.index for piece in pieces for part in piece.tool_calls if part.name] == [0]
    assert pieces[-1].finish_reason == FinishReason.TOOL_CALLS
    assert len(pieces) < 45


WEATHER = '{"city": "Rome", "days": 3, "units": "C"}'
WRITTEN = {
    tool_models.QWEN3: [
        f'<tool_call>\n{{"name": "weather", "arguments": {WEATHER}}}\n</tool_call>',
        CALL,
    ],
    tool_models.QWEN3_CODER: [
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n<parameter=units>\nC\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=time>\n</function>\n</tool_call>",
    ],
    tool_models.MISTRAL_NEW: [f"[TOOL_CALLS]weather[ARGS]{WEATHER}", "[TOOL_CALLS]time[ARGS]{}"],
    tool_models.PLAIN: [
        f'{{"name": "weather", "arguments": {WEATHER}}}',
        '{"name": "time", "arguments": {}}',
    ],
}
NAMED, REQUIRED = ToolUse(TOOLS, "weather"), ToolUse(TOOLS, "required")


@pytest.mark.parametrize("template", list(WRITTEN))
@pytest.mark.parametrize("all_special", [False, True])
def test_grammars_force_calls_in_the_model_s_own_format(template: str, all_special: bool) -> None:
    answers = Answers(template, all_special=all_special)
    weather, time = WRITTEN[template]
    between = "" if template is tool_models.MISTRAL_NEW else "\n"
    assert answers.accepts(weather, NAMED)
    assert answers.accepts(weather, REQUIRED)
    assert answers.accepts(f"{time}{between}{weather}", REQUIRED)
    assert not answers.accepts(time, NAMED)
    assert not answers.accepts(f"{weather}{between}{weather}", NAMED)
    assert not answers.accepts(f"{weather}{between}{weather}", replace(REQUIRED, parallel=False))
    assert not answers.accepts("Hello", REQUIRED)
    assert not answers.accepts(weather.replace('"C"', '"K"').replace("\nC\n", "\nK\n"), REQUIRED)
    for day in ("0", "x"):
        wrong = weather.replace("days>\n3", f"days>\n{day}").replace('"days": 3', f'"days": {day}')
        assert wrong != weather
        assert not answers.accepts(wrong, REQUIRED)
    # What the grammar lets through is read as calls.
    for written, use in ((weather, NAMED), (f"{time}{between}{weather}", REQUIRED)):
        _, text, calls, reason = answers.message(written, use)
        assert (text, reason) == ("", "tool_calls")
        assert calls[-1] == ("weather", json.loads(WEATHER))


def test_grammar_of_mistral_s_lists() -> None:
    answers = Answers(tool_models.MISTRAL)
    call = f'{{"name": "weather", "arguments": {WEATHER}}}'
    assert answers.accepts(f"[TOOL_CALLS][{call}]", NAMED)
    assert answers.accepts(f"[TOOL_CALLS][{call}, {call}]", REQUIRED)
    assert not answers.accepts(f"[TOOL_CALLS][{call}, {call}]", NAMED)


@pytest.mark.parametrize("all_special", [False, True])
def test_grammars_leave_room_for_thinking(all_special: bool) -> None:
    answers = Answers(tool_models.QWEN3, all_special=all_special)
    assert answers.accepts(f"<think>\nA\n</think>\n\n{CALL}", REQUIRED)
    assert answers.accepts(CALL, REQUIRED)
    assert not answers.accepts("<think>\nA\n</think>\n\nNo.", REQUIRED)
    answers = Answers(tool_models.QWEN3_THINKING, all_special=all_special)
    assert answers.accepts(f"A\n</think>\n\n{CALL}", REQUIRED)
    assert not answers.accepts("A\n</think>\n\nNo.", REQUIRED)


def test_only_enforced_calls_have_a_grammar() -> None:
    answers = Answers(tool_models.QWEN3)
    assert answers.format.grammar(answers.request(AUTO), 0, answers.prompt_ids, None) is None
    assert answers.format.grammar(answers.request(), 0, answers.prompt_ids, None) is None


CONVERSATION: Any = [
    {"role": "user", "content": "Time and weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "time", "arguments": {}}},
            {
                "id": "2",
                "type": "function",
                "function": {"name": "weather", "arguments": {"city": "Orléans"}},
            },
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "Noon"},
    {"role": "tool", "tool_call_id": "2", "content": "Rain"},
]


def test_a_template_without_tools_gets_them_as_text() -> None:
    answers = Answers(tool_models.PLAIN)
    chat = answers.format.prompt(Chat(CONVERSATION, list(TOOLS)))
    assert isinstance(chat, Chat)
    first, calls, results = chat.messages
    assert chat.tools is None
    assert all(json.dumps(tool["function"]) in first["content"] for tool in TOOLS)
    assert first["content"].endswith("Time and weather?")
    # As the model is told to write calls, and as they are read.
    assert results == {"role": "user", "content": "Result: Noon\nResult: Rain"}
    assert answers.message(calls["content"], AUTO)[2] == [("time", {}), ("weather", {"city": "Orléans"})]


def test_prompts_stay_as_they_are_where_nothing_is_to_be_told() -> None:
    plain, knowing = Answers(tool_models.PLAIN), Answers(tool_models.QWEN3)
    with_tools = Chat(CONVERSATION, list(TOOLS))
    assert knowing.format.prompt(with_tools) is with_tools
    chat = Chat(MESSAGES)
    assert plain.format.prompt(chat) is chat
    assert plain.format.prompt("text") == "text"

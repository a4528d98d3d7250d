"""Tool calls in the text of each family, in pieces of any size."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.api.text.choice import Piece
from control_plane.api.text.message import Message
from control_plane.api.text.request import ToolUse
from control_plane.api.tools.calls import CallSplitter
from control_plane.api.tools.formats.hermes import Hermes
from control_plane.api.tools.formats.mistral import Mistral
from control_plane.api.tools.formats.plain import Plain
from control_plane.api.tools.formats.qwen_coder import QwenCoder
from control_plane.api.tools.parsing.tool_format import ToolFormat

WEATHER: Any = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "units": {}},
        "required": ["city"],
    },
}
TIME: Any = {"name": "time"}
USE = ToolUse(tuple({"type": "function", "function": tool} for tool in (WEATHER, TIME)))
HERMES, CODER, PLAIN = Hermes(), QwenCoder(), Plain()
MISTRAL = Mistral(writes_list=True)
FORMATS: list[ToolFormat] = [HERMES, CODER, MISTRAL, PLAIN]

Calls = list[tuple[str, Any]]


def pieces_of(form: ToolFormat, *parts: str, use: ToolUse = USE) -> list[Piece]:
    splitter = CallSplitter(form, use)
    return [splitter.split(part, number == len(parts)) for number, part in enumerate(parts, start=1)]


def message_of(form: ToolFormat, *parts: str, use: ToolUse = USE) -> tuple[str, Calls]:
    """The text and the calls of an answer, whose arguments must be JSON."""
    message = Message.of(pieces_of(form, *parts, use=use))
    return message.text, [(call.name, json.loads(call.arguments)) for call in message.tool_calls]


CODED = """<tool_call>
<function=weather>
<parameter=city>
New "York"
on\tthe </para
</parameter>
<parameter=days>
3
</parameter>
<parameter=units>
{"unit": ["C"]}
</parameter>
</function>
</tool_call>"""
CODED_ARGUMENTS = {"city": 'New "York"\non\tthe </para', "days": 3, "units": {"unit": ["C"]}}
PARIS = '{"name": "weather", "arguments": {"city": "Paris"}}'
CASES: list[tuple[ToolFormat, str, str, Calls]] = [
    (HERMES, f"<tool_call>\n{PARIS}\n</tool_call>", "", [("weather", {"city": "Paris"})]),
    (
        HERMES,
        f'Let me look.\n\n<tool_call>{PARIS}</tool_call>\n<tool_call>\n{{"name": "time"}}\n</tool_call>\n',
        "Let me look.",
        [("weather", {"city": "Paris"}), ("time", {})],
    ),
    (
        HERMES,
        '<tool_call>{"arguments": {"a": [1, -2.5e3, true, null, "\\u00e9\\n"]}, "id": 7, "name": "weather"}'
        "</tool_call>",
        "",
        [("weather", {"a": [1, -2500.0, True, None, "é\n"]})],
    ),
    # A line break within a string is not valid JSON, but what models write when they write code.
    (
        HERMES,
        '<tool_call>{"name": "weather", "arguments": {"city": "a\nb"}}</tool_call>',
        "",
        [("weather", {"city": "a\nb"})],
    ),
    (HERMES, f"<tool_call>{PARIS} and more", "and more", [("weather", {"city": "Paris"})]),
    (CODER, CODED, "", [("weather", CODED_ARGUMENTS)]),
    (
        CODER,
        f"I call\n{CODED}\n<tool_call>\n<function=time>\n</function>\n</tool_call>",
        "I call",
        [("weather", CODED_ARGUMENTS), ("time", {})],
    ),
    (CODER, "<function=time></function>", "", [("time", {})]),
    (
        MISTRAL,
        f'[TOOL_CALLS] [{PARIS}, {{"name": "time", "arguments": {{}}}}]',
        "",
        [("weather", {"city": "Paris"}), ("time", {})],
    ),
    (
        MISTRAL,
        'Yes.[TOOL_CALLS]weather[ARGS]{"city": "Paris"}[TOOL_CALLS]time[CALL_ID]123456789[ARGS]{}',
        "Yes.",
        [("weather", {"city": "Paris"}), ("time", {})],
    ),
    (MISTRAL, '[TOOL_CALLS]weather{"city": "Paris"}', "", [("weather", {"city": "Paris"})]),
    (PLAIN, PARIS, "", [("weather", {"city": "Paris"})]),
    (
        PLAIN,
        f'\n{PARIS}\n{{"name": "time", "parameters": {{}}}}',
        "",
        [("weather", {"city": "Paris"}), ("time", {})],
    ),
]
NO_CALLS = [
    (HERMES, "A <tool_call is < no call\n"),
    (HERMES, '<tool_call>{"name": "weather", "arguments": "Paris"}</tool_call>'),
    (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": Paris}}</tool_call>'),
    (HERMES, '<tool_call>{"arguments": {}}</tool_call> x'),
    (HERMES, '<tool_call>{"name": "weather", "arguments": {"a": "\\x"}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "weather", "arguments": {"a": 01}}</tool_call>'),
    (HERMES, f'<tool_call>{{"name": "weather", "arguments": {{"a": {"[" * 100}{"]" * 100}}}}}'),
    (CODER, "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<oops>"),
    (CODER, "<tool_call>\n{}"),
    (MISTRAL, "[TOOL_CALLS] is what I write"),
    (MISTRAL, "[TOOL_CALLS]" + "n" * 1000 + "{}"),
    (PLAIN, '{"city": "Paris"}'),
    (PLAIN, '{"name": "Paris", "arguments": {}}'),
    (PLAIN, f"Here: {PARIS}"),
    (PLAIN, ""),
]


@pytest.mark.parametrize(("form", "written", "text", "calls"), CASES)
def test_calls_are_read(form: ToolFormat, written: str, text: str, calls: Calls) -> None:
    assert message_of(form, written) == (text, calls)
    assert message_of(form, *written) == (text, calls)


@pytest.mark.parametrize(("form", "written"), NO_CALLS)
def test_what_is_no_call_stays_text(form: ToolFormat, written: str) -> None:
    assert message_of(form, written) == (written, [])
    assert message_of(form, *written, "") == (written, [])


@pytest.mark.parametrize(("form", "written", "text", "calls"), CASES)
def test_a_call_that_is_cut_is_text(form: ToolFormat, written: str, text: str, calls: Calls) -> None:
    """Wherever the tokens end, the calls before are whole, and nothing else is called one."""
    for end in range(len(written)):
        cut, whole = message_of(form, *written[:end])
        assert whole == calls[: len(whole)]
        if not whole:
            assert cut == written[:end]


@given(data=st.data())
def test_pieces_of_any_size_are_read_alike(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(FORMATS))
    fragments = [case[1] for case in CASES if case[0] is form] + [
        text for other, text in NO_CALLS if other is form
    ]
    written = "".join(
        data.draw(st.lists(st.one_of(st.sampled_from(fragments), st.text(max_size=5)), max_size=4))
    )
    written = written[: data.draw(st.integers(0, len(written)))]
    places = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=8)))
    parts = [written[start:end] for start, end in zip([0, *places], [*places, len(written)], strict=True)]
    assert message_of(form, *parts) == message_of(form, written)


@given(st.lists(st.text(alphabet='<tool_cal>[TOLCS] \n{x"', max_size=8)), st.sampled_from(FORMATS))
def test_text_without_calls_loses_nothing(parts: list[str], form: ToolFormat) -> None:
    text, calls = message_of(form, *parts, "")
    assert (text, calls) == ("".join(parts), [])


def test_arguments_are_given_out_as_they_arrive() -> None:
    parts = [
        "<tool_",
        'call>{"name": "wea',
        'ther", "arg',
        'uments": {"city',
        '": "Pa',
        "ris",
        '"}',
        "}</tool_call>",
    ]
    given_out = [
        [(part.name, part.arguments) for part in piece.tool_calls] for piece in pieces_of(HERMES, *parts)
    ]
    assert given_out == [
        [],
        [],
        [("weather", "")],
        [("", '{"city')],
        [("", '": "Pa')],
        [("", "ris")],
        [("", '"}')],
        [],
    ]


def test_strings_of_tagged_arguments_are_given_out_as_they_arrive() -> None:
    parts = ["<tool_call>\n<function=weather>\n<parameter=city>\nPa", "ris\n", "x\n</parameter>\n</function>"]
    given_out = ["".join(part.arguments for part in piece.tool_calls) for piece in pieces_of(CODER, *parts)]
    assert given_out == ['{"city": "Pa', "ris", '\\nx"}']


def test_text_is_given_out_at_once_unless_it_may_begin_a_call() -> None:
    assert [piece.text for piece in pieces_of(HERMES, "Hi", " there", " ", "<b", "> <tool", "s")] == [
        "Hi",
        " there",
        "",
        " <b",
        ">",
        " <tools",
    ]


def test_ids() -> None:
    (piece,) = pieces_of(HERMES, f"<tool_call>{PARIS}</tool_call>" * 2)
    ids = [part.call_id for part in piece.tool_calls if part.name]
    assert len(set(ids)) == 2
    assert all(each.startswith("call_") and len(each) == 29 and each[5:].isalnum() for each in ids)
    # Mistral's chat templates refuse others.
    (piece,) = pieces_of(MISTRAL, f"[TOOL_CALLS][{PARIS}]")
    assert len(piece.tool_calls[0].call_id) == 9
    assert piece.tool_calls[0].call_id.isalnum()


def test_an_answer_that_may_not_call_several_ends_after_one() -> None:
    one = ToolUse(USE.tools, parallel=False)
    splitter = CallSplitter(HERMES, one)
    splitter.split(f"<tool_call>{PARIS[:-1]}", last=False)
    assert not splitter.ended
    piece = splitter.split(f"}}</tool_call><tool_call>{PARIS}</tool_call> more", last=False)
    assert splitter.ended
    assert (piece.text, piece.tool_calls) == ("", ())

"""docs/api.md lists exactly the fields that the code reads, refuses and ignores."""

import re

from control_plane.api.bodies.reading import Body
from control_plane.api.openai import wire
from control_plane.api.openai.messages import IGNORED_IN_MESSAGES, Message
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "api.md").read_text()
Fields = set[tuple[str, str]]
"""Names of fields, each with what becomes of it."""


def documented(title: str) -> Fields:
    """The fields in the tables below a heading, up to the next one."""
    text = re.split(r"^#+ ", PAGE.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.M)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    ]
    assert all(len(row) == 5 for row in rows), rows
    names = [(name, row[1]) for row in rows[2:] for name in re.findall(r"`([^`]+)`", row[0])]
    assert len(names) == len(set(names))
    return set(names)


def declared(*kinds: type[Body]) -> Fields:
    return {
        field
        for kind in kinds
        for field in (
            *((name, "obeyed") for name in kind.__struct_fields__),
            *((name, "refused") for name in kind.neutral),
            *((name, "no effect") for name in kind.ignored),
        )
    }


def test_chats_and_completions() -> None:
    both = documented("Chats and completions")
    assert both | documented("Chats only") == declared(wire.ChatBody)
    assert both | documented("Completions only") == declared(wire.CompletionBody)


def test_tokenize() -> None:
    assert documented("Tokenize") == declared(wire.TokenizeBody, wire.DetokenizeBody)


def test_messages() -> None:
    refused = {"function_call", "audio"}
    read = {(name, "refused" if name in refused else "obeyed") for name in Message.__struct_fields__}
    ignored = {(name.removeprefix("messages."), "no effect") for name in IGNORED_IN_MESSAGES}
    assert documented("Messages") == read | ignored

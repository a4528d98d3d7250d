"""An answer's blocks are the same, however it is cut into pieces."""

from control_plane.api.text.blocks import Blocks, Change
from control_plane.api.text.choice import Piece, ToolCallPart
from control_plane.engine.state.sequence import FinishReason
from tests.support.api.answers import CALLED, CALLS, CUT, TEXT, THINKING


def test_what_is_of_another_kind_begins_a_block() -> None:
    blocks = Blocks()
    blocks.add_all([*THINKING, *TEXT, *CALLS, CALLED])
    assert [(block.index, block.kind, block.text) for block in blocks.all] == [
        (0, "reasoning", "a cat sat?"),
        (1, "text", 'it "came"\u2028'),
        (2, "tool_call", '{"place": "mat"}'),
        (3, "tool_call", ""),
    ]
    assert [(block.call_id, block.name) for block in blocks.all[2:]] == [
        ("call_1", "look"),
        ("call_2", "wait"),
    ]
    assert [block.arguments for block in blocks.all[2:]] == [{"place": "mat"}, {}]
    assert (blocks.finish_reason, blocks.reasoning_tokens) == (FinishReason.TOOL_CALLS, 3)
    assert not any(block.cut for block in blocks.all)


def test_one_block_is_open_at_a_time_and_the_last_piece_closes_it() -> None:
    blocks = Blocks()
    changes = [
        (change, block.index)
        for piece in [*THINKING, *TEXT, *CALLS, CALLED]
        for change, block, _ in blocks.add(piece)
        if change != Change.GREW
    ]
    assert changes == [(change, index) for index in range(4) for change in (Change.OPENED, Change.CLOSED)]


def test_the_limit_cuts_only_the_block_that_is_open() -> None:
    blocks = Blocks()
    blocks.add_all([*TEXT, *CALLS[:2], CUT])
    assert [block.cut for block in blocks.all] == [False, True]
    assert blocks.all[1].arguments is None


def test_arguments_that_are_no_object_are_none() -> None:
    for text in ("[]", "4", "{", "[" * 100_000):
        blocks = Blocks()
        blocks.add_all([Piece("", tool_calls=(ToolCallPart(0, text, "call_1", "look"),))])
        assert blocks.all[0].arguments is None


def test_an_answer_without_text_has_no_blocks() -> None:
    blocks = Blocks()
    blocks.add_all([Piece(""), CALLED])
    assert blocks.all == []

"""Masks allow what the grammar does; whatever fails, fails for its own answer."""

from collections.abc import Iterable
from random import Random
from threading import Event

import numpy as np
import pytest

from control_plane.engine.grammar import matcher as matcher_module
from control_plane.engine.grammar.compiler import GrammarCompiler, Vocabulary
from control_plane.engine.grammar.matcher import Matcher
from control_plane.errors import BadRequest

END = 256
NUMBER = "start: /-?[0-9]{1,3}/"


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    """A compiler for bytes, an end token, a longer token, and two ids without a token."""
    tokens = [*(bytes([byte]) for byte in range(256)), b"<end>", b"12", b"", b""]
    return GrammarCompiler(Vocabulary(tokens, frozenset({END}), frozenset({END})))


def allowed(matcher: Matcher) -> set[int]:
    mask = matcher.mask()
    assert mask is not None
    return tokens(mask)


def tokens(mask: bytes) -> set[int]:
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def ids(*characters: str | int) -> set[int]:
    return {ord(each) if isinstance(each, str) else each for each in characters}


def started(compiler: GrammarCompiler, grammar: str, tokens: Iterable[int] = ()) -> Matcher:
    matcher = compiler.compile(grammar, "field")
    matcher.begin()
    for token in tokens:
        assert token in allowed(matcher)
        matcher.accept(token)
    return matcher


def test_the_end_is_allowed_where_the_grammar_is_complete(compiler: GrammarCompiler) -> None:
    assert allowed(started(compiler, NUMBER)) == ids("-", *"0123456789", 257)
    assert allowed(started(compiler, NUMBER, b"-1")) == ids(*"0123456789", 257, END)
    assert allowed(started(compiler, NUMBER, b"-12")) == ids(*"0123456789", END)
    assert allowed(started(compiler, NUMBER, b"-123")) == {END}


def test_the_model_chooses_the_tokens_of_a_text_that_the_grammar_fixes(compiler: GrammarCompiler) -> None:
    assert allowed(started(compiler, 'start: "123"')) == ids("1", 257)


def test_copies_are_independent(compiler: GrammarCompiler) -> None:
    first = compiler.compile(NUMBER, "field")
    second = first.copy()
    first.begin()
    second.begin()
    for token in b"123":
        first.accept(token)
    assert allowed(first) == {END}
    assert allowed(second) == ids("-", *"0123456789", 257)
    assert allowed(second) == ids("-", *"0123456789", 257)


def test_a_token_that_breaks_the_grammar_fails_this_matcher_alone(compiler: GrammarCompiler) -> None:
    broken, other = started(compiler, NUMBER), started(compiler, NUMBER)
    broken.accept(ord("x"))
    assert broken.mask() is None
    assert str(broken.error).startswith("field: the answer cannot go on by it: ")
    assert allowed(other)


def test_a_mask_that_takes_too_long_fails_this_matcher_alone(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, other = started(compiler, NUMBER), started(compiler, NUMBER)
    assert allowed(slow)
    release = Event()
    monkeypatch.setattr(slow, "_after", lambda _: release.wait(30) and b"")
    monkeypatch.setattr(matcher_module, "MASK_SECONDS", 0.05)
    slow.accept(ord("1"))
    other.accept(ord("1"))
    assert slow.mask() is None
    assert "a mask took too long" in str(slow.error)
    monkeypatch.setattr(matcher_module, "MASK_SECONDS", 10.0)
    assert END in allowed(other)
    release.set()


@pytest.mark.parametrize(
    "grammar",
    [
        "start: /(.{0,200}a.{0,200}b.{0,200}c.{0,200}){1,20}/",
        r"start: /(\p{L}{1,300}\p{Lu}{1,300}){1,300}/",
    ],
)
def test_an_answer_whose_grammar_grows_ends(compiler: GrammarCompiler, grammar: str) -> None:
    """Or else it would take the memory and the time of all."""
    matcher = compiler.compile(grammar, "field")
    matcher.begin()
    choices, spent = Random(1), 0
    while (mask := matcher.mask()) is not None:
        matcher.accept(choices.choice(sorted(tokens(mask) - {END})))
        spent += 1
        assert spent < 5000
    assert "too" in str(matcher.error)


def test_masks_that_take_too_long_in_all_end_the_answer(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matcher_module, "TOKEN_SECONDS", -0.6)
    matcher = started(compiler, NUMBER, b"-1")
    assert matcher.mask() is None
    assert str(matcher.error) == "field: the answer cannot go on by it: its masks take too long"


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        ("start: (", "field: "),
        ('start: "a" other', 'unknown name: "other"'),
        ("start: start", "field: "),
        ("start: T0\n" + "".join(f"T{n}: T{n + 1} T{n + 1}\n" for n in range(60)) + 'T60: "x"', "too big"),
        ("start: " + "(" * 5000 + '"a"' + ")" * 5000, "too deeply nested"),
        ('start: %json {"$ref": "http://127.0.0.1:1/schema"}', "is not present"),
    ],
)
def test_what_is_no_grammar_or_too_large_is_refused(
    compiler: GrammarCompiler, grammar: str, problem: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        compiler.compile(grammar, "field")
    assert problem in str(refused.value)
    assert refused.value.param == "field"
    assert len(str(refused.value)) < 600


def test_a_model_without_an_end_token_cannot_be_held_to_a_grammar() -> None:
    compiler = GrammarCompiler(Vocabulary([b"a"], frozenset(), frozenset()))
    with pytest.raises(BadRequest, match="no token that ends"):
        compiler.compile(NUMBER, "field")

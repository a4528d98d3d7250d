"""Tokens are decoded to text one by one, without loss."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from control_plane.api.text.codec import TextCodec
from control_plane.errors import BadRequest, TokenizerError
from control_plane.partition.checkpoint.stored_tokenizer import ModelTokenizer
from tests.support.paths import DEMO_MODEL

DEMO: Any = AutoTokenizer.from_pretrained(DEMO_MODEL)
"""A tokenizer with a byte-level vocabulary."""
CODEC = TextCodec(ModelTokenizer.of(DEMO), len(DEMO))
END = DEMO.convert_tokens_to_ids("<|im_end|>")
OHM = DEMO.encode("\N{OHM SIGN}")
"""The tokens of a character with three bytes: one per byte."""


def fallback_codec() -> TextCodec:
    """A codec with a vocabulary like SentencePiece's: words that begin with a space, and single bytes."""
    words = ["<unk>", "</s>", "▁the", "▁cat", "s", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE(
        vocab={word: number for number, word in enumerate(words)},
        merges=[],
        unk_token="<unk>",
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast: Any = PreTrainedTokenizerFast
    return TextCodec(ModelTokenizer.of(fast(tokenizer_object=tokenizer, eos_token="</s>")), len(words))


FALLBACK = fallback_codec()


def pieces(codec: TextCodec, token_ids: list[int], context: list[int] | None = None) -> list[str]:
    decoder = codec.decoder(context or [])
    return [*(decoder.add(token_id) for token_id in token_ids), decoder.finish()]


@given(st.text(max_size=30))
def test_encoding_and_decoding_restores_the_text(text: str) -> None:
    token_ids = DEMO.encode(text)
    assert "".join(pieces(CODEC, token_ids)) == text


@given(st.lists(st.one_of(st.integers(0, len(DEMO) - 1), st.integers(0, 300)), max_size=40))
def test_a_stream_adds_up_to_the_whole_text(token_ids: list[int]) -> None:
    """This holds for invalid UTF-8, too: the ids up to 300 are mostly single bytes."""
    whole = DEMO.decode(token_ids, skip_special_tokens=True)
    assert "".join(pieces(CODEC, token_ids)) == whole
    assert CODEC.decode(token_ids) == whole
    # The prompt ends with a whole character, so the answer's bytes start a new one.
    assert "".join(pieces(CODEC, token_ids, DEMO.encode("the cat"))) == whole


def test_a_character_is_held_back_until_it_is_whole() -> None:
    assert len(OHM) == 3
    assert pieces(CODEC, OHM) == ["", "", "\N{OHM SIGN}", ""]
    assert pieces(CODEC, OHM[:2]) == ["", "", "\ufffd"]


def test_invalid_bytes_are_not_held_back_for_ever() -> None:
    given_out = pieces(CODEC, [OHM[1]] * 1000)
    assert "".join(given_out) == "\ufffd" * 1000
    longest = 0
    for number in range(1, 1001):
        longest = max(longest, number - len("".join(given_out[:number])))
    assert longest <= 12


def test_special_tokens_have_no_text() -> None:
    token_ids = [*DEMO.encode("it"), END, END, *DEMO.encode(" came")]
    assert pieces(CODEC, token_ids) == ["it", "", "", " came", ""]
    assert CODEC.decode(token_ids) == "it came"


@given(st.lists(st.sampled_from([END, OHM[0], OHM[1], *DEMO.encode("it came")]), max_size=20))
def test_special_tokens_have_their_text_if_they_are_shown(token_ids: list[int]) -> None:
    decoder = CODEC.decoder((), skip_special_tokens=False)
    texts = [*(decoder.add(token_id) for token_id in token_ids), decoder.finish()]
    whole = DEMO.decode(token_ids, skip_special_tokens=False)
    assert "".join(texts) == whole
    assert CODEC.decode(token_ids, skip_special_tokens=False) == whole
    assert whole.count("<|im_end|>") == token_ids.count(END)


def test_special_tokens_by_name() -> None:
    assert CODEC.special_ids(["<|im_end|>", "it", "<|im_end", ""]) == {END}
    assert CODEC.special_ids([]) == frozenset()
    assert FALLBACK.special_ids(["</s>", "s"]) == {FALLBACK.tokenizer.eos_token_id}


def test_a_continued_text_keeps_its_space() -> None:
    the, cat = map(FALLBACK.tokenizer.vocabulary().__getitem__, ("▁the", "▁cat"))
    assert pieces(FALLBACK, [cat]) == ["cat", ""]
    assert pieces(FALLBACK, [cat], [the]) == [" cat", ""]


@given(st.text(max_size=12))
def test_bytes_of_a_fallback_vocabulary(text: str) -> None:
    token_ids = [5 + byte for byte in text.encode()]
    assert "".join(pieces(FALLBACK, token_ids)).strip(" ") == text.strip(" ")


def test_the_text_of_a_token() -> None:
    assert CODEC.token_text(DEMO.encode(" the")[0]) == " the"
    assert CODEC.token_text(END) == "<|im_end|>"
    assert CODEC.token_text(OHM[0]) == "\ufffd"


@given(st.text(min_size=1, max_size=20))
def test_the_bytes_of_the_tokens_add_up_to_the_text(text: str) -> None:
    raw = [CODEC.token_bytes(token_id, CODEC.token_text(token_id)) for token_id in DEMO.encode(text)]
    assert b"".join(raw) == text.encode()


def test_the_bytes_of_other_tokens() -> None:
    assert FALLBACK.token_bytes(5 + 0xE2, "") == b"\xe2"
    assert FALLBACK.token_bytes(3, " cat") == b" cat"
    assert CODEC.token_bytes(END, "") == b""
    # The model may have more tokens than the tokenizer.
    assert CODEC.token_bytes(len(DEMO) + 5, "") == b""


@pytest.mark.parametrize("token_ids", [[-1], [len(DEMO)], [1 << 70]])
def test_bad_token_ids(token_ids: list[int]) -> None:
    with pytest.raises(BadRequest, match="tokens: token ids must be from 0"):
        CODEC.decode(token_ids)


@pytest.mark.parametrize(
    "decode",
    [
        lambda codec: codec.decode([0, 1]),
        lambda codec: codec.token_text(0),
        lambda codec: codec.decoder().add(0),
    ],
)
def test_a_tokenizer_that_panics(decode: Callable[[TextCodec], str]) -> None:
    """A panic is not an Exception: it would leave the client without an answer."""
    panicking = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    strip: Any = decoders.Strip
    panicking.decoder = strip("a", 3, 9)
    fast: Any = PreTrainedTokenizerFast
    codec = TextCodec(ModelTokenizer.of(fast(tokenizer_object=panicking)), 3)
    with pytest.raises(TokenizerError, match="the tokenizer has failed: PanicException: index out of"):
        decode(codec)

"""The bytes of tokens are those that llguidance reads from a tokenizer's own JSON."""

from typing import Any

import pytest
from llguidance import LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from control_plane.engine.grammar.vocabulary import vocabulary_of
from control_plane.partition.checkpoint.stored_tokenizer import ModelTokenizer
from tests.support.paths import DEMO_MODEL

fast: Any = PreTrainedTokenizerFast


def sentencepiece() -> Any:
    """A vocabulary with fallback bytes and spaces, as Mixtral's."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    names = ["<unk>", "<s>", "</s>", *fallback, "\u2581", "\u2581a", "\u00e9", "ab"]
    ids = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(ids, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts)
    made = fast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>")
    made.add_tokens([AddedToken("<tool_call>", special=False)])
    return made


@pytest.mark.parametrize("kind", ["pieces", "bytes"])
def test_bytes_are_those_of_llguidance(kind: str) -> None:
    tokenizer: Any = sentencepiece() if kind == "pieces" else AutoTokenizer.from_pretrained(DEMO_MODEL)
    size, end = len(tokenizer) + 3, tokenizer.eos_token_id
    vocabulary = vocabulary_of(ModelTokenizer.of(tokenizer), size, frozenset({end}))
    reference = LLTokenizer(tokenizer.backend_tokenizer.to_str(), n_vocab=size, eos_token=end)
    plain = [token for token in range(len(tokenizer)) if token not in vocabulary.special_ids]
    assert [vocabulary.tokens[each] for each in plain] == [reference.decode_bytes([each]) for each in plain]
    assert all(reference.is_special_token(token) for token in vocabulary.special_ids)
    assert vocabulary.tokens[len(tokenizer) :] == [b""] * 3


def test_a_model_may_know_fewer_tokens_than_its_tokenizer() -> None:
    tokenizer = sentencepiece()
    vocabulary = vocabulary_of(ModelTokenizer.of(tokenizer), 100, frozenset({2, 5000}))
    assert len(vocabulary.tokens) == 100
    assert vocabulary.end_ids == {2}

"""Compiles Lark grammars, in the dialect of the library llguidance."""

from dataclasses import dataclass
from types import SimpleNamespace

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from control_plane.engine.grammar.mask_thread import MaskThread
from control_plane.engine.grammar.matcher import Matcher, described, is_empty
from control_plane.errors import BadRequest

_LIMITS = LLParserLimits(
    # With these, nearly all masks take 40 ms at most, and a matcher some 20 MB.
    step_lexer_fuel=100_000,
    max_lexer_states=10_000,
    # A vocabulary must not decide how long a grammar takes to compile: see `GrammarCompiler`.
    precompute_large_lexemes=False,
    verbose_errors=False,
)

_OPTIONS = '\n%llguidance {"no_forcing": true}'
"""Where a grammar allows one text only, the model still chooses its tokens: the library encodes no text."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model."""

    tokens: list[bytes]
    """The bytes of each token, by its id. Empty for ids without a token, the name for special tokens."""
    special_ids: frozenset[int]
    """Tokens that no text matches, the end tokens among them."""
    end_ids: frozenset[int]
    """The tokens that end an answer."""


class GrammarCompiler:
    """Makes matchers for a vocabulary, which takes 8 MB of memory if it has 150,000 tokens.

    Some short grammars take very long to compile, and nothing can end a compilation. So the API first tries
    each grammar with a vocabulary of bytes, in a process that it can end.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokenizer = _tokenizer(vocabulary)
        self._thread = MaskThread()

    def compile(self, grammar: str, field: str) -> Matcher:
        """The matcher at the start of an answer. Takes a millisecond; a second at worst, if tried before.

        Raises `BadRequest` for what is not a grammar, or too large a one. `field` is the request's.
        """
        if self._tokenizer is None:
            raise BadRequest(f"{field}: this model has no token that ends an answer", field)
        state = LLMatcher(self._tokenizer, grammar + _OPTIONS, log_level=0, limits=_LIMITS)
        # Some grammars show only at the first token that they are too large, or that nothing matches them.
        if not state.is_error() and is_empty(state.compute_bitmask()) and not state.is_error():
            raise BadRequest(f"{field}: no answer matches it", field)
        if state.is_error():
            raise BadRequest(f"{field}: {described(state)}", field)
        return Matcher(state, self._thread, field)


def _tokenizer(vocabulary: Vocabulary) -> LLTokenizer | None:
    """The vocabulary as the library keeps it. None for one without an end token.

    From a tokenizer's own JSON, the library would make a tokenizer that encodes text as well, which takes
    67 MB more with 150,000 tokens. It encodes text only for forced tokens, which `_OPTIONS` switches off.
    """
    if not vocabulary.end_ids:
        return None
    tokens = SimpleNamespace(
        tokens=vocabulary.tokens,
        special_token_ids=sorted(vocabulary.special_ids),
        eos_token_id=min(vocabulary.end_ids),
        bos_token_id=None,
    )
    wrapper = TokenizerWrapper(tokens)
    made = LLTokenizer(wrapper, n_vocab=len(vocabulary.tokens), eos_token=sorted(vocabulary.end_ids))
    # The library keeps both objects, and has copied the tokens.
    tokens.tokens = wrapper.tokens = []
    return made

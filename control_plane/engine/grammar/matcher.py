"""Follows one answer through a grammar, and says which tokens may come next."""

import time
from concurrent.futures import Future
from typing import Self

from llguidance import LLMatcher

from control_plane.engine.grammar.mask_thread import MaskThread
from control_plane.errors import BadRequest

MASK_SECONDS = 10.0
"""The longest that a step waits for a mask: a last resort, since the library ends nearly all within 40 ms."""
FREE_SECONDS = 1.0
"""How much of a processor's time all masks of an answer may take, besides `TOKEN_SECONDS`. An answer that
takes more ends, because others wait for its masks."""
TOKEN_SECONDS = 0.005
"""How much more of a processor's time they may take for each token of the answer. Most take 0.05 ms."""
_MAX_ERROR = 500
"""The most characters of the library's errors that are passed on."""


class Matcher:
    """A grammar's state after the tokens of one answer. It belongs to one sequence.

    Masks are computed in a thread: `begin` and `accept` start one, and `mask` waits for it. The state
    lives as long as the sequence, so nothing is repeated when the sequence is computed again.
    """

    def __init__(self, state: LLMatcher, thread: MaskThread, field: str) -> None:
        """`field` is the request's field, for errors."""
        self._state = state
        self._thread = thread
        self._field = field
        self._mask: Future[bytes] | None = None
        self._seconds_left = FREE_SECONDS
        self.error: BadRequest | None = None
        """Why there are no more masks."""

    def copy(self) -> Self:
        """A matcher of the same grammar for another answer. Only before `begin`."""
        return type(self)(self._state.deep_copy(), self._thread, self._field)

    def begin(self) -> None:
        """Start to compute the mask of the first token."""
        self._mask = self._thread.submit(self._state.compute_bitmask)

    def accept(self, token_id: int) -> None:
        """Add a token to the answer, and start to compute the mask of the next one."""
        self._mask = self._thread.submit(lambda: self._after(token_id))

    def mask(self) -> bytes | None:
        """A bit for each token, the lowest first: whether it may come next. None for an error: see `error`.

        Waits for it, so only the engine's thread may call it. At least one token may come: where nothing else
        continues the answer, an end token. Calling it again gives the same.
        """
        assert self._mask is not None
        try:
            mask = self._mask.result(MASK_SECONDS)
        except TimeoutError:
            self._thread.replace()
            self._fail("a mask took too long")
            return None
        except BaseException as error:
            # The library's panics are not Exceptions.
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            self._fail(str(error)[:_MAX_ERROR])
            return None
        if self._state.is_error():
            self._fail(described(self._state))
            return None
        if self._seconds_left < 0:
            self._fail("its masks take too long")
            return None
        if is_empty(mask):
            self._fail("no token continues it")
            return None
        return mask

    def _after(self, token_id: int) -> bytes:
        started = time.thread_time()
        self._state.consume_token(token_id)
        mask = bytes(self._state.compute_bitmask())
        self._seconds_left += TOKEN_SECONDS - (time.thread_time() - started)
        return mask

    def _fail(self, problem: str) -> None:
        self.error = BadRequest(f"{self._field}: the answer cannot go on by it: {problem}", self._field)


def is_empty(mask: bytes) -> bool:
    """Whether no token may come next."""
    return mask.count(0) == len(mask)


def described(state: LLMatcher) -> str:
    """The error of a state."""
    lines = str(state.get_error()).replace("<non-verbose/>", "").strip()[:_MAX_ERROR].splitlines()
    return "\n".join(line for line in lines if "%llguidance" not in line)

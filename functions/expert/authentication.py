"""Decides whether a caller may use the function: it has to prove that it has the shared secret."""

import hmac
import threading
import time
from collections.abc import Callable
from pathlib import Path

from functions.contract.secret import FunctionSecret
from functions.fast_path.shared import ProofsState, condition

READ_AGAIN_SECONDS = 1.0
"""The least time between two looks at the secret's file, which callers without the secret can cause."""


class Authentication:
    """The shared secret in a file, which may be replaced while the function runs. Threads may share it."""

    def __init__(self, function: str, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises OSError or ValueError for a file without a secret."""
        self._function = function
        self._file = file
        self._clock = clock
        self._lock = threading.Lock()
        self.changed = condition()
        """Guards the state."""
        self.state = ProofsState()
        """Both proofs, for calls in C."""
        self._read_at = clock()
        self._use(FunctionSecret.read(file))

    @property
    def proof(self) -> str:
        """What the function sends with its answers."""
        return self._proof

    def allows(self, proof: str) -> bool:
        """Whether a request with this proof is the control plane's."""
        return self._matches(proof) or (self._read_again() and self._matches(proof))

    def _matches(self, proof: str) -> bool:
        # Constant time: a timing must not reveal how much of the proof is right.
        return hmac.compare_digest(proof.encode(), self._expected)

    def _read_again(self) -> bool:
        """Read the file, unless that has just been done; returns whether the secret has changed."""
        with self._lock:
            now = self._clock()
            if now - self._read_at < READ_AGAIN_SECONDS:
                return False
            try:
                secret = FunctionSecret.read(self._file)
            except (OSError, ValueError):
                self._read_at = now
                return False
            before = self._expected
            self._use(secret)
            return self._expected != before

    def _use(self, secret: FunctionSecret) -> None:
        self._expected = secret.caller_proof(self._function).encode()
        self._proof = secret.function_proof(self._function)
        self._read_at = self._clock()
        with self.changed:
            self.state.caller, self.state.function = self._expected, self._proof.encode()

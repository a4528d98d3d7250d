"""The secret that control plane and functions share, and what each side sends to prove that it has it.

Both proofs depend on the function's name alone, so they are computed once, and a call pays for comparing two
short texts. They do not hide what is sent: whoever can listen on the network can repeat them.
"""

import hashlib
import hmac
from dataclasses import dataclass, field
from pathlib import Path

SECRET_NAME = "faasmoe-functions"  # a name, not a secret
"""The secret's name in OpenFaaS, and so the name of its file."""
SECRETS_FOLDER = "/var/openfaas/secrets"
"""Where OpenFaaS mounts secrets in a function's container."""
SECRETS_VARIABLE = "FAASMOE_SECRETS"
"""Names another folder of secrets."""
OPEN_VARIABLE = "FAASMOE_OPEN"
"""Set to 1, a function without the secret answers everybody, on any address."""

CALLER_HEADER = "X-FaaSMoE-Caller"
"""Has the caller's proof, in a request."""
FUNCTION_HEADER = "X-FaaSMoE-Function"
"""Has the function's proof, in the answer to an invocation."""
UNAUTHORIZED = "unauthorized"
"""The error code of a request without the caller's proof."""

MIN_CHARACTERS = 16
MAX_CHARACTERS = 4096
_PROOF_DIGITS = 32


@dataclass(frozen=True)
class FunctionSecret:
    """The secret, without the white space around it."""

    value: str = field(repr=False)

    @classmethod
    def read(cls, file: Path) -> "FunctionSecret":
        """Read it from a file. Raises OSError, and ValueError if it is no text, too short or too long."""
        with file.open("rb") as opened:
            value = opened.read(MAX_CHARACTERS + 1).decode().strip()
        if not MIN_CHARACTERS <= len(value) <= MAX_CHARACTERS:
            raise ValueError(f"{file} has to have {MIN_CHARACTERS} to {MAX_CHARACTERS} characters")
        return cls(value)

    def caller_proof(self, function: str) -> str:
        """What a caller of the function sends."""
        return self._proof(f"caller {function}")

    def function_proof(self, function: str) -> str:
        """What the function sends with its answers."""
        return self._proof(f"function {function}")

    def _proof(self, text: str) -> str:
        return hmac.new(self.value.encode(), text.encode(), hashlib.sha256).hexdigest()[:_PROOF_DIGITS]

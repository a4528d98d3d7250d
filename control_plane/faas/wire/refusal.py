"""What the error answers of functions and gateways mean."""

import json
from dataclasses import dataclass

from control_plane.errors import FunctionNotFound, FunctionUnavailable, GatewayError, ProtocolError
from control_plane.faas.wire.response_reader import HttpResponse
from functions.contract.process import UNKNOWN_EXPERT
from functions.contract.secret import UNAUTHORIZED

MAX_CODE = 64
MAX_QUOTED = 200
"""The most characters of an answer's text that are quoted."""

_RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Refusal:
    """An answer other than 200."""

    error: GatewayError
    is_final: bool = False
    """Whether the invocation itself is wrong, so that no other attempt can mend it."""
    not_found: bool = False
    """Whether a gateway has found no such function. It answers so, too, while its provider is away."""
    is_death: bool = False
    """Whether the function may have died of the call."""

    @classmethod
    def read(cls, function: str, response: HttpResponse, direct: bool) -> "Refusal":
        """What a response means to a call of the function, which went straight to its address or did not."""
        status = response.status
        code, message = read_error(response.body)
        text = f"function {function} answered {status}: {message}"
        if code == UNAUTHORIZED:
            text = f"function {function} has another secret than the control plane: deploy it with that"
        if direct:
            # Another function may have taken over an old address; its refusal says nothing about this one.
            return cls(FunctionUnavailable(text))
        if status == 404 and code != UNKNOWN_EXPERT:
            missing = FunctionNotFound(f"the gateway has no function {function}: deploy it first")
            return cls(missing, not_found=True)
        if status == 405 and not code:
            # faasd has no address for a function that has just ended. It calls its own gateway instead,
            # which takes no POST there.
            return cls(FunctionUnavailable(f"function {function} does not run"))
        if status not in _RETRYABLE_STATUS:
            return cls(ProtocolError(text), is_final=True)
        # Without a code it is a gateway that speaks, and 502 is its word for a function that broke off.
        return cls(FunctionUnavailable(text), is_death=status == 502 or (status == 500 and not code))


def read_error(body: bytes | bytearray) -> tuple[str, str]:
    """Code and message of the contract's JSON error; for any other body, no code and its first words."""
    try:
        error = json.loads(body)["error"]
        return str(error["code"])[:MAX_CODE], _in_one_line(str(error["message"]))
    except (KeyError, RecursionError, TypeError, ValueError):
        return "", _in_one_line(body[: 4 * MAX_QUOTED].decode(errors="replace"))


def _in_one_line(text: str) -> str:
    words = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * MAX_QUOTED]).split()
    return " ".join(words)[:MAX_QUOTED]

"""The `logprobs` objects of OpenAI's answers."""

from collections.abc import Sequence
from typing import Any

from control_plane.api.text.choice import Alternative, TokenEntry


def logprobs_body(entries: Sequence[TokenEntry], is_chat: bool) -> dict[str, Any]:
    """Build the `logprobs` object of a chat or a completion."""
    if is_chat:
        return {"content": [_chat_entry(entry) for entry in entries], "refusal": None}
    return {
        "text_offset": [entry.text_offset for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "tokens": [entry.text for entry in entries],
        "top_logprobs": [_top_logprobs(entry) for entry in entries],
    }


def _chat_entry(entry: TokenEntry) -> dict[str, Any]:
    top = [_chat_token(other.text, other.logprob, other.raw) for other in entry.top]
    return {**_chat_token(entry.text, entry.logprob, entry.raw), "top_logprobs": top}


def _chat_token(text: str, logprob: float | None, raw: bytes) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(raw)}


def _top_logprobs(entry: TokenEntry) -> dict[str, float] | None:
    """Log-probabilities by text. They include the chosen token, since clients compare it with the greatest.

    Among tokens with the same text the likeliest counts. One with the chosen token's text goes by its id.
    """
    if entry.logprob is None:
        return None
    top: dict[str, float] = {}
    for other in entry.top:
        top.setdefault(_key(other, entry), other.logprob)
    return {**top, entry.text: entry.logprob}


def _key(other: Alternative, entry: TokenEntry) -> str:
    same_text = other.text == entry.text and other.token_id != entry.token_id
    return f"token_id:{other.token_id}" if same_text else other.text

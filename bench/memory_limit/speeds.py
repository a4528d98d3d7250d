"""Tokens per second, from when a client saw each token."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from bench.support.requests import Timing


@dataclass(frozen=True)
class DecodeSpeed:
    """Tokens per second of all sequences together, from when each has a token to when the first ends."""

    whole: float
    first_half: float
    second_half: float


def decode_speed(timings: Sequence[Timing]) -> DecodeSpeed:
    """Of answers that were generated at once; the halves are of as many tokens. ValueError for too few."""
    begin = max(timing.tokens[0] for timing in timings)
    end = min(timing.tokens[-1] for timing in timings)
    moments = sorted(moment for timing in timings for moment in timing.tokens if begin < moment <= end)
    if len(moments) < 2 * len(timings):
        raise ValueError("the answers did not overlap for two tokens each")
    middle = moments[len(moments) // 2 - 1]
    half = bisect_right(moments, middle)
    return DecodeSpeed(
        len(moments) / (end - begin), half / (middle - begin), (len(moments) - half) / (end - middle)
    )


def prefill_speed(timings: Sequence[Timing], prompt_tokens: int) -> float:
    """Prompt tokens per second of all sequences, until the last of them has its first token."""
    seconds = max(timing.tokens[0] for timing in timings) - min(timing.sent for timing in timings)
    return len(timings) * prompt_tokens / seconds

"""Tokens per second of answers whose times are easy to count."""

import pytest

from bench.memory_limit.decoding import decode_speed, prefill_speed
from bench.support.requests import StreamTiming


def test_decoding_is_counted_while_all_sequences_generate() -> None:
    # Together from 2.0, where the later one has its first token, to 5.0, where the earlier one ends.
    early = StreamTiming(0.0, [1.0, 2.0, 3.0, 4.0, 5.0])
    late = StreamTiming(0.0, [2.0, 3.0, 4.0, 5.0, 6.0])
    speed = decode_speed([early, late])
    assert speed.whole == pytest.approx(6 / 3)


def test_halves_are_apart() -> None:
    speed = decode_speed([StreamTiming(0.0, [1.0, 3.0, 5.0, 6.0, 7.0])])
    assert (speed.first_half, speed.second_half) == pytest.approx((0.5, 1.0))
    assert speed.whole == pytest.approx(4 / 6)


def test_answers_that_do_not_overlap_have_no_speed() -> None:
    with pytest.raises(ValueError, match="overlap"):
        decode_speed([StreamTiming(0.0, [1.0, 2.0]), StreamTiming(0.0, [5.0, 6.0])])


def test_prefill_lasts_to_the_last_first_token() -> None:
    assert prefill_speed([StreamTiming(1.0, [2.0, 9.0]), StreamTiming(1.5, [5.0])], 64) == pytest.approx(32.0)

"""Amounts with units: bytes and durations."""

import pytest

from control_plane.errors import ConfigError
from control_plane.quantities import parse_bytes, parse_duration, parse_seconds


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("6GB", 6 * 10**9),
        ("6 GB", 6 * 10**9),
        ("6gb", 6 * 10**9),
        ("6GiB", 6 * 2**30),
        ("1.5GiB", 3 * 2**29),
        ("0.1GB", 10**8),
        ("500MB", 5 * 10**8),
        ("512MiB", 2**29),
        ("3kB", 3000),
        ("3KiB", 3072),
        ("1TB", 10**12),
        ("6000000000", 6 * 10**9),
        ("17B", 17),
        (" 17 ", 17),
    ],
)
def test_bytes(text: str, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "GB", "6G", "-6GB", "6 GB or so", "6e9", "1,5GB", "nan", "٦GB", "9" * 40]
)
def test_bad_amounts_of_bytes(text: str) -> None:
    with pytest.raises(ConfigError, match="expected bytes, such as 6GB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("15m", 900.0), ("1h30m", 5400.0), ("1.5s", 1.5), ("250ms", 0.25)]
)
def test_durations_in_go_s_notation(text: str, seconds: float) -> None:
    assert parse_duration(text) == parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "15", "m", "-5m", "5 m", "5m!", "1d", "0s"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("60", 60.0), ("0.5", 0.5), (" 15m ", 900.0), ("0", 0.0), ("0s", 0.0)]
)
def test_seconds_need_no_unit(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "nan", "inf", "-1", "1e3", "60 seconds"])
def test_bad_seconds(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a duration"):
        parse_seconds(text)

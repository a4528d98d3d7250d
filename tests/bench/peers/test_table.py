"""Medians, and ratios to the fastest peer."""

from bench.peers.table import Speed, Table, decode_row, prefill_row, rows


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_ours_is_compared_with_the_fastest() -> None:
    table = Table("FaaSMoE int4", ["llama.cpp q4_0", "ik_llama.cpp q4_0"])
    for speed, share in [(12.0, 0.8), (15.0, 0.85), (90.0, 0.9)]:
        table.add("FaaSMoE int4", {decode_row(1): Speed(speed, share)})
    table.add("llama.cpp q4_0", {decode_row(1): Speed(7.5), prefill_row(64): Speed(27.0)})
    table.add("ik_llama.cpp q4_0", {decode_row(1): Speed(10.0)})
    lines = table.markdown([decode_row(1), prefill_row(64)]).splitlines()
    assert cells(lines[0])[1:4] == ["FaaSMoE int4", "llama.cpp q4_0", "ik_llama.cpp q4_0"]
    assert cells(lines[2]) == ["decode, 1 sequence", "15.0", "7.50", "10.0", "1.50", "85%"]
    assert cells(lines[3]) == ["prefill of 64", "-", "27.0", "-", "-", "-"]


def test_limits_have_rows_of_their_own() -> None:
    assert rows(["none", "5GB"])[-2:] == ["prefill of 512", "decode within 5GB, 1 sequence"]
    assert rows(["8GB"]) == ["decode within 8GB, 1 sequence"]

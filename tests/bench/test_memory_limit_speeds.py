"""Tokens per second and the bytes behind them, of answers and models that are easy to count."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from bench.memory_limit.results import Machine
from bench.memory_limit.speeds import decode_speed, prefill_speed
from bench.memory_limit.weights import StepWeights, used_dense_bytes
from bench.support.requests import Timing
from bench.support.scrape import Scrape
from control_plane.errors import FaaSMoEError


def test_decoding_is_counted_while_all_sequences_generate() -> None:
    # Together from 2.0, where the later one has its first token, to 5.0, where the earlier one ends.
    early = Timing(0.0, [1.0, 2.0, 3.0, 4.0, 5.0])
    late = Timing(0.0, [2.0, 3.0, 4.0, 5.0, 6.0])
    speed = decode_speed([early, late])
    assert speed.whole == pytest.approx(6 / 3)


def test_halves_are_apart() -> None:
    speed = decode_speed([Timing(0.0, [1.0, 3.0, 5.0, 6.0, 7.0])])
    assert (speed.first_half, speed.second_half) == pytest.approx((0.5, 1.0))
    assert speed.whole == pytest.approx(4 / 6)


def test_answers_that_do_not_overlap_have_no_speed() -> None:
    with pytest.raises(ValueError, match="overlap"):
        decode_speed([Timing(0.0, [1.0, 2.0]), Timing(0.0, [5.0, 6.0])])


def test_prefill_lasts_to_the_last_first_token() -> None:
    assert prefill_speed([Timing(1.0, [2.0, 9.0]), Timing(1.5, [5.0])], 64) == pytest.approx(32.0)


def test_each_expert_is_read_once_for_a_step() -> None:
    weights = StepWeights(1000, 10, np.array([[1.0, 0.5, 0.5], [1.0, 1.0, 0.0]]))
    assert weights.nbytes(1) == 1000 + 10 * 4
    assert weights.nbytes(2) == 1000 + 10 * (3 + 2 * 0.75)


@pytest.mark.parametrize(("head", "expected"), [("lm_head.packed", 30), ("model.norm.weight", 130)])
def test_a_step_reads_no_embeddings_but_those_that_are_the_head(
    tmp_path: Path, head: str, expected: int
) -> None:
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "model.embed_tokens.weight": {"dtype": "U8", "shape": [100], "data_offsets": [0, 100]},
            head: {"dtype": "U8", "shape": [30], "data_offsets": [100, 130]},
        }
    ).encode()
    file = tmp_path / "dense.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(130))
    assert used_dense_bytes(file) == expected


def test_the_machine_allows_what_its_slower_part_does() -> None:
    machine = Machine(memory_bandwidth=100.0, disk_bandwidth=10.0)
    assert machine.tokens_per_second(50.0, 1.0) == pytest.approx(2.0)
    assert machine.tokens_per_second(50.0, 20.0) == pytest.approx(0.5)


def test_metrics_are_summed_over_their_labels() -> None:
    scrape = Scrape.of_text(
        "\n".join(
            f'reads_total{{function="{function}",layer="{layer}"}} {value}'
            for function, layer, value in (("a", 0, 3), ("a", 1, 1), ("b", 0, 4))
        )
        + "\n"
    )
    assert scrape.total("reads_total") == 8
    assert scrape.by("function", "reads_total") == {"a": 4, "b": 4}
    with pytest.raises(FaaSMoEError, match="no writes_total"):
        scrape.total("writes_total")

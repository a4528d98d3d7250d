"""Granularities are checked by tables of cases, and against brute force."""

import pytest

from control_plane.errors import ConfigError
from control_plane.partition.granularity import Granularity, default_granularity, finest_within


@pytest.mark.parametrize(
    ("granularity", "num_experts", "moe_layers", "wanted"),
    [
        (Granularity(2, 1), 4, (0, 1), [((0,), 0, 2), ((0,), 2, 4), ((1,), 0, 2), ((1,), 2, 4)]),
        (Granularity(4, 2), 4, (0, 1), [((0, 1), 0, 4)]),
        (Granularity(3, 2), 4, (1, 3, 5), [((1, 3), 0, 3), ((1, 3), 3, 4), ((5,), 0, 3), ((5,), 3, 4)]),
    ],
)
def test_cut_is_consecutive_runs(
    granularity: Granularity,
    num_experts: int,
    moe_layers: tuple[int, ...],
    wanted: list[tuple[tuple[int, ...], int, int]],
) -> None:
    blocks = granularity.cut(num_experts, moe_layers)
    assert blocks == [(layers, range(start, stop)) for layers, start, stop in wanted]


@pytest.mark.parametrize("num_experts", [1, 4, 7])
@pytest.mark.parametrize("num_layers", [1, 3, 4])
def test_cut_holds_each_expert_once(num_experts: int, num_layers: int) -> None:
    everything = [(layer, expert) for layer in range(num_layers) for expert in range(num_experts)]
    for per_function in range(1, num_experts + 1):
        for layers_per_function in range(1, num_layers + 1):
            granularity = Granularity(per_function, layers_per_function)
            blocks = granularity.cut(num_experts, range(num_layers))
            sizes = {len(layers) * len(experts) for layers, experts in blocks}
            assert len(blocks) == granularity.num_functions(num_experts, num_layers)
            assert sorted((la, e) for layers, es in blocks for la in layers for e in es) == everything
            assert granularity.is_even(num_experts, num_layers) == (
                sizes == {per_function * layers_per_function}
            )


@pytest.mark.parametrize(
    ("granularity", "message"),
    [
        (Granularity(0, 1), "experts per function must be from 1 to 8 for this model, not 0"),
        (Granularity(9, 1), "experts per function must be from 1 to 8 for this model, not 9"),
        (Granularity(1, 0), "layers per function must be from 1 to 3 for this model, not 0"),
        (Granularity(1, 4), "layers per function must be from 1 to 3 for this model, not 4"),
    ],
)
def test_a_granularity_beyond_the_model_is_refused(granularity: Granularity, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        granularity.check(8, 3)


@pytest.mark.parametrize("granularity", [Granularity(1, 1), Granularity(8, 3), Granularity(3, 2)])
def test_a_granularity_within_the_model_is_accepted(granularity: Granularity) -> None:
    granularity.check(8, 3)


@pytest.mark.parametrize(
    ("max_functions", "num_experts", "num_layers", "wanted"),
    [
        (15, 60, 24, Granularity(20, 5)),
        (15, 8, 4, Granularity(3, 1)),
        (1, 60, 24, Granularity(60, 24)),
        (3, 60, 24, Granularity(60, 8)),
        (10_000, 60, 24, Granularity(1, 1)),
        (72, 60, 24, Granularity(20, 1)),
    ],
)
def test_finest_within(max_functions: int, num_experts: int, num_layers: int, wanted: Granularity) -> None:
    assert finest_within(max_functions, num_experts, num_layers) == wanted


@pytest.mark.parametrize(("num_experts", "num_layers"), [(1, 1), (8, 4), (60, 24), (7, 13), (128, 5)])
@pytest.mark.parametrize("max_functions", [1, 2, 15, 40])
def test_no_other_granularity_has_more_functions(
    max_functions: int, num_experts: int, num_layers: int
) -> None:
    best = finest_within(max_functions, num_experts, num_layers).num_functions(num_experts, num_layers)
    counts = [
        Granularity(experts, layers).num_functions(num_experts, num_layers)
        for experts in range(1, num_experts + 1)
        for layers in range(1, num_layers + 1)
    ]
    assert best == max(count for count in counts if count <= max_functions)


def test_default_fits_every_edition() -> None:
    assert default_granularity(60, 24) == Granularity(60, 2)
    assert default_granularity(2, 15) == Granularity(2, 1)
    assert default_granularity(60, 24, packed=True).num_functions(60, 24) == 15
    assert default_granularity(2, 2, packed=True) == Granularity(1, 1)

"""What counts as growing."""

from bench.robustness.soak.growth import FILES, MEMORY, THREADS, Series, lines


def test_growth_is_measured_after_the_warm_up_without_single_peaks() -> None:
    warm = [(float(second), 100.0 + max(0, 30 - second)) for second in range(90)]
    assert Series("p", MEMORY, warm).flat
    peaks = [(second, amount + 50 * (second % 30 == 0)) for second, amount in warm]
    assert Series("p", MEMORY, peaks).slope == 0.0
    leak = Series("p", MEMORY, [(second, 100 + second / 3600 * 11) for second, _ in warm])
    assert round(leak.slope, 3) == 11.0
    assert not leak.flat
    assert Series("p", FILES, [(0.0, 5.0)]).flat
    assert [round(leak.around(share), 2) for share in (0.0, 0.5, 1.0)] == [100.01, 100.13, 100.26]
    assert list(lines([leak]))[1].split()[-1] == "NO"


def test_a_pool_may_fill_but_threads_may_not_grow_without_end() -> None:
    seconds = [float(second) for second in range(1800)]
    filling = Series("p", THREADS, [(second, 12.0 + second // 600) for second in seconds])
    assert filling.slope > THREADS.bound
    assert filling.flat
    assert not Series("p", THREADS, [(second, 12.0 + second // 300) for second in seconds]).flat

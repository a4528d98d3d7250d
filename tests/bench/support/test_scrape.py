"""Metrics of a server are read from its /metrics page."""

import pytest

from bench.support.scrape import Scrape
from control_plane.errors import FaaSMoEError


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

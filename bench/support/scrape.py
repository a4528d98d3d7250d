"""Reads the metrics of a server."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from control_plane.errors import FaaSMoEError


@dataclass(frozen=True)
class Scrape:
    """All metrics of a server at one moment. A metric that is missing raises `FaaSMoEError`."""

    samples: Sequence[Sample]

    @classmethod
    def of_text(cls, text: str) -> "Scrape":
        """Parse the Prometheus text format."""
        families = text_string_to_metric_families(text)
        return cls([sample for family in families for sample in family.samples])

    @classmethod
    async def now(cls, client: aiohttp.ClientSession, url: str) -> "Scrape":
        """Fetch /metrics. Raises `FaaSMoEError` if the server refuses."""
        async with client.get(f"{url}/metrics") as answer:
            text = await answer.text()
            if answer.status != 200:
                raise FaaSMoEError(f"{url}/metrics answered {answer.status}: {text}")
        return cls.of_text(text)

    def total(self, metric: str) -> float:
        """The sum over all labels."""
        return sum(sample.value for sample in self._of(metric))

    def by(self, label: str, metric: str) -> Mapping[str, float]:
        """The sum for each value of one label, over all other labels."""
        values: dict[str, float] = defaultdict(float)
        for sample in self._of(metric):
            values[sample.labels[label]] += sample.value
        return values

    def _of(self, metric: str) -> list[Sample]:
        samples = [sample for sample in self.samples if sample.name == metric]
        if not samples:
            raise FaaSMoEError(f"/metrics has no {metric}")
        return samples

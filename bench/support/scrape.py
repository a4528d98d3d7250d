"""What a server's /metrics counts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from control_plane.errors import FaaSMoEError


@dataclass(frozen=True)
class Scrape:
    """All of them at one moment. What is looked for and not there, raises `FaaSMoEError`."""

    samples: Sequence[Sample]

    @classmethod
    def of_text(cls, text: str) -> "Scrape":
        """As Prometheus would read it."""
        families = text_string_to_metric_families(text)
        return cls([sample for family in families for sample in family.samples])

    @classmethod
    async def now(cls, client: aiohttp.ClientSession, url: str) -> "Scrape":
        """Raises `FaaSMoEError` when the server refuses."""
        async with client.get(f"{url}/metrics") as answer:
            text = await answer.text()
            if answer.status != 200:
                raise FaaSMoEError(f"{url}/metrics answered {answer.status}: {text}")
        return cls.of_text(text)

    def total(self, metric: str) -> float:
        """Over all labels."""
        return sum(sample.value for sample in self._of(metric))

    def by(self, label: str, metric: str) -> Mapping[str, float]:
        """Over all labels but one, by that one's values."""
        values: Counter[str] = Counter()
        for sample in self._of(metric):
            values[sample.labels[label]] += sample.value  # type: ignore[assignment]
        return values

    def _of(self, metric: str) -> list[Sample]:
        samples = [sample for sample in self.samples if sample.name == metric]
        if not samples:
            raise FaaSMoEError(f"/metrics has no {metric}")
        return samples

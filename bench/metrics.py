"""What a server's /metrics counts."""

from collections import Counter
from collections.abc import Mapping

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from control_plane.errors import FaaSMoEError


def totals(text: str) -> Mapping[str, float]:
    """Each sample's value by its name, summed over the labels."""
    values: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name] += sample.value  # type: ignore[assignment]
    return dict(values)


async def total(client: aiohttp.ClientSession, url: str, metric: str) -> float:
    """What it is now. Raises `FaaSMoEError` when the server refuses, or has no such metric."""
    async with client.get(f"{url}/metrics") as answer:
        text = await answer.text()
        if answer.status != 200:
            raise FaaSMoEError(f"{url}/metrics answered {answer.status}: {text}")
    try:
        return totals(text)[metric]
    except KeyError:
        raise FaaSMoEError(f"{url}/metrics has no {metric}") from None

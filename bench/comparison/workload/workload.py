"""A workload: requests of several tenants with arrival times, as JSON lines in the order of arrival."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from control_plane.errors import ConfigError
from control_plane.files import read_lines


@dataclass(frozen=True)
class WorkloadRequest:
    """A tenant's request for an answer of `output_tokens` tokens."""

    tenant: str
    arrival: float
    """Seconds since the round began. Arrivals do not wait for earlier answers."""
    output_tokens: int
    prompt: str | None = None
    prompt_tokens: int | None = None
    """Length of a random prompt; set instead of `prompt`."""
    round: int = 0
    """A round begins when all requests of the one before are answered. An open loop is one round."""


_TYPES: dict[str, tuple[type, ...]] = {
    "tenant": (str,),
    "arrival": (int, float),
    "output_tokens": (int,),
    "prompt": (str,),
    "prompt_tokens": (int,),
    "round": (int,),
}
_NEEDED = frozenset({"tenant", "arrival", "output_tokens"})


def write(file: Path, requests: Sequence[WorkloadRequest]) -> None:
    """Write a file that `read` reads. Fields that are None are left out."""
    lines = (
        json.dumps({name: value for name, value in asdict(request).items() if value is not None})
        for request in requests
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read(file: Path) -> list[WorkloadRequest]:
    """Read the requests of a file. Raises `ConfigError`, which names the line."""
    requests: list[WorkloadRequest] = []
    for where, line in read_lines(file):
        try:
            requests.append(_request(json.loads(line)))
            if len(requests) > 1:
                _check_order(*requests[-2:])
        except (json.JSONDecodeError, RecursionError) as error:
            raise ConfigError(f"{where}: not JSON, or cut off: {error}") from error
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
    if not requests:
        raise ConfigError(f"{file} has no requests")
    return requests


def _request(entry: Any) -> WorkloadRequest:
    """A checked request. Raises ValueError."""
    if not isinstance(entry, dict):
        raise ValueError("expected an object")
    if unknown := sorted(entry.keys() - _TYPES.keys()):
        raise ValueError(f"{unknown[0]!r} is unknown; a request has {', '.join(_TYPES)}")
    if missing := sorted(_NEEDED - entry.keys()):
        raise ValueError(f"{missing[0]!r} is missing")
    for name, value in entry.items():
        if not isinstance(value, _TYPES[name]) or isinstance(value, bool):
            raise ValueError(f"{name!r} is {value!r}, which is no {_TYPES[name][-1].__name__}")
    request = WorkloadRequest(**entry)
    if not request.tenant:
        raise ValueError("'tenant' is empty")
    if (request.prompt is None) == (request.prompt_tokens is None):
        raise ValueError("expected either 'prompt' or 'prompt_tokens'")
    if request.prompt == "" or request.prompt_tokens == 0:
        raise ValueError("the prompt is empty")
    least = {"arrival": 0, "output_tokens": 1, "prompt_tokens": 1, "round": 0}
    for name, bound in least.items():
        value = getattr(request, name)
        # Written so that NaN fails, too.
        if value is not None and not bound <= value < float("inf"):
            raise ValueError(f"{name!r} is {value}, and must be at least {bound}")
    return request


def _check_order(earlier: WorkloadRequest, later: WorkloadRequest) -> None:
    """Raises ValueError if the requests are not in the order of arrival."""
    if later.round < earlier.round:
        raise ValueError(f"round {later.round} comes after round {earlier.round}")
    if later.round == earlier.round and later.arrival < earlier.arrival:
        raise ValueError(f"time goes backwards, from {earlier.arrival:g} s to {later.arrival:g} s")

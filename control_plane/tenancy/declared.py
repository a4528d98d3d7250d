"""Tenants that the config file declares."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control_plane.errors import ConfigError
from control_plane.tenancy.keys import read_key
from control_plane.tenancy.tenants import BOUNDS, Limits, check_name

_KINDS: Mapping[str, tuple[type, ...]] = {
    "name": (str,),
    "key_file": (str,),
    "weight": (int, float),
    **dict.fromkeys(BOUNDS, (int,)),
    "operator": (bool,),
}


@dataclass(frozen=True)
class DeclaredTenant:
    """A tenant as the config file has it; without a key it gets one from `faasmoe tenants rotate-key`."""

    name: str
    limits: Limits
    operator: bool = False
    key: str | None = field(default=None, repr=False)


def read_declared(entries: object, folder: Path) -> tuple[DeclaredTenant, ...]:
    """The tenants of a decoded YAML list, and their keys, whose files are found from `folder`.

    Raises `ConfigError`, which names the tenant and the key of the entry.
    """
    if not isinstance(entries, list):
        raise ConfigError("tenants must be a list, such as `- {name: acme, rpm: 60}`")
    tenants = tuple(_read_all(entries, folder))
    for name, times in Counter(tenant.name for tenant in tenants).items():
        if times > 1:
            raise ConfigError(f"tenant {name}: name: declared {times} times")
    return tenants


def _read_all(entries: list[object], folder: Path) -> Iterator[DeclaredTenant]:
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or "name" not in entry:
            raise ConfigError(f"tenants: the entry number {number} has no name")
        try:
            yield _read(entry, folder)
        except ConfigError as error:
            raise ConfigError(f"tenant {entry['name']}: {error}") from error


def _read(entry: Mapping[Any, Any], folder: Path) -> DeclaredTenant:
    for key, value in entry.items():
        if key not in _KINDS:
            raise ConfigError(f"unknown key {key!r}; there are {', '.join(_KINDS)}")
        # A bool is no int here.
        if type(value) not in _KINDS[key]:
            raise ConfigError(f"{key} must be {_KINDS[key][-1].__name__}, not {value!r}")
    check_name(entry["name"])
    limits = Limits(**{key: value for key, value in entry.items() if key in ("weight", *BOUNDS)})
    key_file = entry.get("key_file")
    key = None if key_file is None else read_key(folder / key_file)
    return DeclaredTenant(entry["name"], limits, entry.get("operator", False), key)

"""Tenants that the config file declares."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control_plane.errors import ConfigError
from control_plane.tenancy.keys import read_key
from control_plane.tenancy.tenants import BOUNDS, Bound, Limits, Weight, check_name
from control_plane.validation import check_settings

_TYPES: Mapping[str, Any] = {
    "name": str,
    "key_file": str,
    "weight": Weight,
    **dict.fromkeys(BOUNDS, Bound),
    "operator": bool,
}


@dataclass(frozen=True)
class DeclaredTenant:
    """A tenant as the config file declares it.

    A tenant that is declared without a key gets one from `faasmoe tenants rotate-key`.
    """

    name: str
    limits: Limits
    operator: bool = False
    key: str | None = field(default=None, repr=False)


def read_declared(entries: object, folder: Path) -> tuple[DeclaredTenant, ...]:
    """Read the tenants in a decoded YAML list, and their key files, whose paths are relative to `folder`.

    Raises `ConfigError`, which names the tenant and its setting.
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


def _read(entry: Mapping[str, Any], folder: Path) -> DeclaredTenant:
    check_settings(entry, _TYPES)
    check_name(entry["name"])
    limits = Limits(**{name: value for name, value in entry.items() if name in ("weight", *BOUNDS)})
    key = read_key(folder / entry["key_file"]) if "key_file" in entry else None
    return DeclaredTenant(entry["name"], limits, entry.get("operator", False), key)

"""Secrets as files, the form in which OpenFaaS mounts them."""

import os
import re
from pathlib import Path

from control_plane.errors import ConfigError
from control_plane.files import write_atomically
from control_plane.validation import MAX_QUOTED

MAX_SECRETS = 256
_NAME = re.compile(r"[a-zA-Z0-9_](?:[-._a-zA-Z0-9]{0,251}[a-zA-Z0-9_])?")
"""Kubernetes' limit of 253 characters is also below that of file names."""


class SecretStore:
    """Stores each secret as a file, in a folder that only its owner can read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def names(self) -> list[str]:
        return sorted(filter(_NAME.fullmatch, os.listdir(self.folder))) if self.folder.is_dir() else []

    def write(self, name: str, value: bytes) -> None:
        """Create or replace a secret.

        Raises ConfigError for a name that cannot be a file name, and when there are too many secrets.
        """
        path = self._path(name)
        if name not in self and len(self.names()) >= MAX_SECRETS:
            raise ConfigError(f"this gateway keeps {MAX_SECRETS} secrets at most")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, value)

    def remove(self, name: str) -> None:
        """Remove a stored secret."""
        self._path(name).unlink()

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"not a secret's name: {name[:MAX_QUOTED]!r}")
        return self.folder / name

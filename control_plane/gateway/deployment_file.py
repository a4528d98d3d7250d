"""Remembers a gateway's deployments, so that it has them again after it was killed or restarted."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from control_plane.faas.types import FunctionStatus
from control_plane.files import state_folder, write_atomically
from control_plane.validation import convert

_FORMAT = 1

_logger = logging.getLogger(__name__)


def gateway_folder(partition: Path, port: int, environment: Mapping[str, str] = os.environ) -> Path:
    """The folder for what the gateway of a partition and a port remembers.

    Raises `ConfigError` if the user has no home folder.
    """
    digest = hashlib.sha256(os.fsencode(partition.absolute())).hexdigest()[:16]
    return state_folder(environment) / "gateways" / f"{port}-{digest}"


class DeploymentFile:
    """A private JSON file with the specification of each function, and how many replicas it had."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[FunctionStatus]:
        """The functions. Without a file there are none, nor, with a warning, if it is damaged or foreign."""
        try:
            content = convert(json.loads(self._path.read_bytes()), dict[str, Any])
            if content.get("format") != _FORMAT:
                raise ValueError(f"format {_FORMAT} is expected")
            functions = convert(content.get("functions"), list[Any])
            return [FunctionStatus.from_json(function) for function in functions]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError) as error:
            _logger.warning("no functions are restored, since %s cannot be read: %s", self._path, error)
            return []

    def write(self, functions: Sequence[FunctionStatus]) -> None:
        """Replace the file. If that fails, a warning is logged: the gateway works without it."""
        content = {"format": _FORMAT, "functions": [function.to_json() for function in functions]}
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(content, indent=1).encode())
        except OSError as error:
            _logger.warning("a restart will not find its functions: %s: %s", self._path, error.strerror)

"""A function's settings, which come from the environment."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from functions.contract.process import (
    DEFAULT_PORT,
    FUNCTION_VARIABLE,
    HOST_VARIABLE,
    IDLE_EXIT_VARIABLE,
    LISTEN_FD_VARIABLE,
    PARTITION_VARIABLE,
    PORT_VARIABLE,
    THREADS_VARIABLE,
)
from functions.contract.secret import OPEN_VARIABLE, SECRET_NAME, SECRETS_FOLDER, SECRETS_VARIABLE
from functions.expert.authentication import Authentication
from functions.host.sockets import is_loopback
from functions.kernels import MAX_THREADS

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PARTITION = "/home/app/partition"
"""The partition's folder in the image."""
BACKLOG = 1024
"""Connections that wait to be accepted: many, so that nobody keeps others out by opening connections."""


@dataclass(frozen=True)
class FunctionSettings:
    """The function's configuration; the package's `__main__` describes each setting."""

    function: str
    partition: Path
    host: str
    port: int
    threads: int | None
    listen_fd: int | None
    idle_exit: int | None
    secret_file: Path | None
    """The file with the secret that callers must have; None if the function was deployed without one."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "FunctionSettings":
        """Raises `ValueError` naming the variable that is missing or wrong."""
        if not environment.get(FUNCTION_VARIABLE):
            raise ValueError(f"{FUNCTION_VARIABLE} is not set")
        host = environment.get(HOST_VARIABLE, DEFAULT_HOST)
        file = Path(environment.get(SECRETS_VARIABLE, SECRETS_FOLDER), SECRET_NAME)
        secret_file = file if file.exists() else None
        may_be_open = environment.get(OPEN_VARIABLE) == "1" or LISTEN_FD_VARIABLE in environment
        if secret_file is None and not may_be_open and not is_loopback(host):
            raise ValueError(
                f"{HOST_VARIABLE} is {host}, and there is no secret {SECRET_NAME}: deploy the function with "
                f"it, or set {OPEN_VARIABLE}=1 if everybody who reaches it may call it"
            )
        return cls(
            function=environment[FUNCTION_VARIABLE],
            partition=Path(environment.get(PARTITION_VARIABLE, DEFAULT_PARTITION)),
            host=host,
            port=_number(environment, PORT_VARIABLE, 65535) or DEFAULT_PORT,
            threads=_number(environment, THREADS_VARIABLE, MAX_THREADS),
            listen_fd=_number(environment, LISTEN_FD_VARIABLE, 1 << 30),
            idle_exit=_number(environment, IDLE_EXIT_VARIABLE, 1 << 30),
            secret_file=secret_file,
        )

    def authentication(self) -> Authentication | None:
        """Who may call. Raises OSError or ValueError for a secret that cannot be read."""
        return Authentication(self.function, self.secret_file) if self.secret_file else None

    def listener(self) -> socket.socket:
        """The listening socket: the supervisor's, or a new one. Raises OSError."""
        if self.listen_fd is not None:
            return socket.socket(fileno=self.listen_fd)
        return socket.create_server((self.host, self.port), backlog=BACKLOG)


def _number(environment: Mapping[str, str], name: str, largest: int) -> int | None:
    """A variable's value from 1 to `largest`, or None where it is not set; raises ValueError."""
    text = environment.get(name)
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,10}", text) or not 1 <= int(text) <= largest:
        raise ValueError(f"{name} is {text!r}, not a number from 1 to {largest}")
    return int(text)

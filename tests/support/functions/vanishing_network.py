"""A network of one machine more, which can go away without a word. It needs root and the command `ip`."""

import ctypes
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

_NETWORK = "10.213.77.0/30"
_OUTER, _INNER = "10.213.77.1", "10.213.77.2"
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class VanishingNetwork:
    """A network namespace, joined to this one by a pair of interfaces."""

    namespace: str
    device: str
    networks: Sequence[IPv4Network] = (IPv4Network(_NETWORK),)

    def inside(self, make: Callable[[str], T]) -> T:
        """What `make` returns for the namespace's host; the sockets that it opens are in the namespace."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._enter_and_make, make).result()

    def vanish(self) -> None:
        """From now on, packets are lost on the way."""
        _ip("-n", self.namespace, "link", "set", self.device, "down")

    def _enter_and_make(self, make: Callable[[str], T]) -> T:
        with Path("/var/run/netns", self.namespace).open() as namespace:
            # A namespace belongs to a thread, which ends after this.
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        return make(_INNER)


@contextmanager
def vanishing_network() -> Iterator[VanishingNetwork]:
    """Make a network until the context ends; skips the test where that is not possible."""
    name = f"faasmoe{os.getpid()}"
    outer, inner = f"fm{os.getpid()}o", f"fm{os.getpid()}i"
    try:
        _ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine makes no network namespaces: {error}")
    try:
        try:
            _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine makes no pairs of interfaces: {error}")
        _ip("address", "add", f"{_OUTER}/30", "dev", outer)
        _ip("link", "set", outer, "up")
        _ip("-n", name, "address", "add", f"{_INNER}/30", "dev", inner)
        _ip("-n", name, "link", "set", inner, "up")
        _await_reply()
        yield VanishingNetwork(name, inner)
    finally:
        subprocess.run(("ip", "link", "delete", outer), capture_output=True, timeout=10)
        _ip("netns", "delete", name)


def _await_reply() -> None:
    """New interfaces may lose their first packets. A refused connection shows that packets pass both ways."""
    for _ in range(50):
        try:
            socket.create_connection((_INNER, 9), timeout=0.2)
        except ConnectionRefusedError:
            return
        except OSError:
            time.sleep(0.05)
    pytest.skip("this machine's pairs of interfaces pass no packets")


def _ip(*arguments: str) -> None:
    subprocess.run(("ip", *arguments), check=True, capture_output=True, timeout=10)

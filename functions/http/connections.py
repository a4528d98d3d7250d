"""Which connections a server has, how much memory their calls take, and which of them gives way to others.

Anybody may connect, and stop in the midst of a call. So neither connections nor bodies are ever refused for
those that only wait for their clients: the one that has waited longest is closed.
"""

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(eq=False)
class Client:
    """One connection, and the bytes of memory for the body of its call."""

    socket: socket.socket
    nbytes: int = 0


class Connections:
    """The connections of a server. They wait for their clients, compute, and send answers.

    A connection waits in silence, from its start or its last answer on, or in the midst of a call. It does
    not give way while it computes, so more connections must be allowed than calls are computed at once.
    """

    def __init__(self, most: int, most_nbytes: int) -> None:
        """Up to `most` connections, and up to `most_nbytes` for the bodies of all their calls."""
        self._most = most
        self._most_nbytes = most_nbytes
        self._nbytes = 0
        self._changed = threading.Condition()
        self._open: set[Client] = set()
        self._waiting: dict[Client, None] = {}
        """Connections that wait for their clients' bytes; the first has waited longest."""
        self._sending: dict[Client, None] = {}
        """Connections whose clients have to read an answer; the first has waited longest."""
        self._leaving: set[Client] = set()
        """Connections that had to give way, and whose threads have not ended yet."""
        self._closed = False

    def add(self, client: Client) -> None:
        """Wait for a place for a new connection; another one gives way if there are too many."""
        with self._changed:
            while len(self._open) >= self._most and not self._closed:
                if not self._leaving:
                    self._give_way(lambda _: True)
                self._changed.wait()
            self._open.add(client)
            self._waiting[client] = None

    def remove(self, client: Client) -> None:
        """The connection is about to be closed. Nobody uses its socket from now on."""
        with self._changed:
            self._nbytes -= client.nbytes
            self._open.discard(client)
            for clients in (self._waiting, self._sending):
                clients.pop(client, None)
            self._leaving.discard(client)
            self._changed.notify_all()

    def begun(self, client: Client) -> None:
        """A part of a call has arrived: from now on the connection waits for the rest."""
        with self._changed:
            if client in self._waiting:
                del self._waiting[client]
                self._waiting[client] = None

    def hold(self, client: Client, nbytes: int) -> bool:
        """Whether the body that the connection receives may take `nbytes`; others give way for it.

        If no call has waited longer for its client than this one, this one has to end.
        """
        with self._changed:
            grown = nbytes - client.nbytes
            while client not in self._leaving and self._nbytes + grown > self._most_nbytes:
                if not self._give_way(lambda other: other.nbytes > 0 or other is client, but=client):
                    return False
            if client in self._leaving:
                return False
            self._nbytes += grown
            client.nbytes = nbytes
            return True

    def compute(self, client: Client) -> bool:
        """A whole call has arrived; returns whether the connection is still there for the answer."""
        with self._changed:
            self._waiting.pop(client, None)
            return client not in self._leaving

    def send(self, client: Client) -> None:
        """The answer is there: from now on the connection waits for its client to read it."""
        with self._changed:
            self._sending[client] = None

    def answered(self, client: Client) -> None:
        """The answer has been sent: the connection waits for the next call."""
        with self._changed:
            if client in self._sending:  # Otherwise it had to give way.
                del self._sending[client]
                self._waiting[client] = None
            self._changed.notify_all()

    def drain(self, seconds: float) -> None:
        """Wait up to `seconds` until no connection computes or sends."""
        with self._changed:
            self._changed.wait_for(self._all_wait, seconds)

    def close(self) -> None:
        """End a running `add` at once; new connections find a place without another giving way."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _all_wait(self) -> bool:
        return len(self._open) == len(self._waiting) + len(self._leaving)

    def _give_way(self, concerns: Callable[[Client], bool], but: Client | None = None) -> bool:
        """Close the connection that has waited longest of those; False if there is none, or it is `but`."""
        longest = next(filter(concerns, (*self._waiting, *self._sending)), None)
        if longest is None or longest is but:
            return False
        for clients in (self._waiting, self._sending):
            clients.pop(longest, None)
        self._leaving.add(longest)
        self._nbytes -= longest.nbytes
        longest.nbytes = 0
        # Its thread is in a call of the socket, which ends with this, and then the thread.
        with contextlib.suppress(OSError):
            longest.socket.shutdown(socket.SHUT_RDWR)
        return True

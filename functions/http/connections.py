"""Which connections a server has, how much memory their calls take, and which of them gives way to others.

Anybody may connect, and stop in the midst of a call. So neither connections nor bodies are ever refused for
those that only wait for their clients: the one that has waited longest is closed.
"""

import contextlib
import socket
from collections.abc import Callable

from functions.fast_path.shared import ClientState, ConnectionsState, Phase, condition


class Client:
    """One connection. Its server's `Connections` guard its state."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.state = ClientState.new()


class Connections:
    """The connections of a server. They wait for their clients, compute, and send answers.

    A connection waits in silence, from its start or its last answer on, or in the midst of a call. It does
    not give way while it computes, so more connections must be allowed than calls are computed at once.
    """

    def __init__(self, most: int, most_nbytes: int) -> None:
        """Up to `most` connections, and up to `most_nbytes` for the bodies of all their calls."""
        self._most = most
        self.state = ConnectionsState(most_nbytes=most_nbytes)
        self.changed = condition()
        """Guards the state, and that of each client."""
        self._open: set[Client] = set()

    @property
    def stopping(self) -> bool:
        """Whether each connection ends after its next answer."""
        return bool(self.state.stopping)

    def add(self, client: Client) -> None:
        """Wait for a place for a new connection; another one gives way if there are too many."""
        with self.changed:
            while len(self._open) >= self._most and not self.stopping:
                if not self._in(Phase.LEAVING):
                    self._give_way(lambda _: True)
                self.changed.wait()
            self._open.add(client)
            self._begin(client, Phase.WAITING)

    def remove(self, client: Client) -> None:
        """The connection is about to be closed. Nobody uses its socket from now on."""
        with self.changed:
            self._take(client, 0)
            self._open.discard(client)
            self.changed.notify_all()

    def begun(self, client: Client) -> None:
        """A part of a call has arrived: from now on the connection waits for the rest."""
        with self.changed:
            if client.state.phase == Phase.WAITING:
                self._begin(client, Phase.WAITING)

    def hold(self, client: Client, nbytes: int) -> bool:
        """Whether the body that the connection receives may take `nbytes`; others give way for it.

        If no call has waited longer for its client than this one, this one has to end.
        """
        with self.changed:
            while client.state.phase != Phase.LEAVING and self._exceeds(nbytes - client.state.nbytes):
                if not self._give_way(lambda other: other.state.nbytes > 0 or other is client, but=client):
                    return False
            if client.state.phase == Phase.LEAVING:
                return False
            self._take(client, nbytes)
            return True

    def compute(self, client: Client) -> bool:
        """A whole call has arrived; returns whether the connection is still there for the answer."""
        with self.changed:
            if client.state.phase == Phase.LEAVING:
                return False
            client.state.phase = Phase.COMPUTING
            return True

    def send(self, client: Client) -> None:
        """The answer is there: from now on the connection waits for its client to read it."""
        with self.changed:
            self._begin(client, Phase.SENDING)

    def answered(self, client: Client) -> None:
        """The answer has been sent: the connection waits for the next call."""
        with self.changed:
            if client.state.phase == Phase.SENDING:  # Otherwise it had to give way.
                self._begin(client, Phase.WAITING)
            self.changed.notify_all()

    def drain(self, seconds: float) -> None:
        """Wait up to `seconds` until no connection computes or sends."""
        with self.changed:
            self.changed.wait_for(lambda: not self._in(Phase.COMPUTING, Phase.SENDING), seconds)

    def close(self) -> None:
        """Have each connection end after its next answer.

        A running `add` ends at once; new connections find a place without another giving way.
        """
        with self.changed:
            self.state.stopping = 1
            self.changed.notify_all()

    def _in(self, *phases: Phase) -> list[Client]:
        """The connections in these phases; of each phase, the first is in it for the longest time."""
        found = (client for client in self._open if client.state.phase in phases)
        return sorted(found, key=lambda client: (client.state.phase, client.state.since))

    def _begin(self, client: Client, phase: Phase) -> None:
        client.state.phase = phase
        client.state.since = self.state.turns
        self.state.turns += 1

    def _exceeds(self, grown: int) -> bool:
        return self.state.nbytes + grown > self.state.most_nbytes

    def _take(self, client: Client, nbytes: int) -> None:
        self.state.nbytes += nbytes - client.state.nbytes
        client.state.nbytes = nbytes

    def _give_way(self, concerns: Callable[[Client], bool], but: Client | None = None) -> bool:
        """Close the connection that has waited longest of those; False if there is none, or it is `but`."""
        longest = next(filter(concerns, self._in(Phase.WAITING, Phase.SENDING)), None)
        if longest is None or longest is but:
            return False
        self._take(longest, 0)
        longest.state.phase = Phase.LEAVING
        # Its thread is in a call of the socket, which ends with this, and then the thread.
        with contextlib.suppress(OSError):
            longest.socket.shutdown(socket.SHUT_RDWR)
        return True

"""What the engine's thread says to the asyncio side."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

from control_plane.engine.sequence import Generated, Sequence
from control_plane.errors import FaaSMoEError

logger = logging.getLogger(__name__)

Event = tuple[int, Generated | None] | FaaSMoEError
"""A sequence's number and what it generated, or None at its end; or the error that ends all of them."""


@dataclass(eq=False)
class TokenStream:
    """The tokens of a request's sequences as they are generated."""

    sequences: list[Sequence]
    loop: asyncio.AbstractEventLoop
    _events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    _running: int = field(init=False)

    def __post_init__(self) -> None:
        self._running = len(self.sequences)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Generated]]:
        """Each with the number of its sequence, until all have ended; raises the error that ended them."""
        while self._running:
            event = await self._events.get()
            if isinstance(event, FaaSMoEError):
                self._running = 0
                raise event
            number, generated = event
            if generated is None:
                self._running -= 1
            else:
                yield number, generated

    async def ended(self) -> None:
        """Wait until nothing more happens to the sequences, whatever ends them."""
        with suppress(FaaSMoEError):
            async for _ in self:
                pass

    def put(self, event: Event) -> None:
        """On the loop's thread."""
        self._events.put_nowait(event)


@dataclass
class Outbox:
    """Events on their way to their streams. A step's go together: each handover wakes the other thread."""

    _events: dict[asyncio.AbstractEventLoop, list[tuple[TokenStream, Event]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, stream: TokenStream, event: Event) -> None:
        """To be sent with the next `flush`."""
        self._events[stream.loop].append((stream, event))

    def flush(self) -> None:
        """Hand all events over to the loops that they belong to."""
        for loop, events in self._events.items():
            try:
                loop.call_soon_threadsafe(_deliver, events)
            except RuntimeError:
                logger.debug("the event loop of %d events is gone", len(events))
        self._events.clear()


def _deliver(events: list[tuple[TokenStream, Event]]) -> None:
    for stream, event in events:
        stream.put(event)

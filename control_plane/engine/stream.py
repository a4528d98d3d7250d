"""Carries tokens and errors from the engine's thread to the event loop."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

from control_plane.engine.state.sequence import Generated, Sequence
from control_plane.errors import FaaSMoEError

logger = logging.getLogger(__name__)

Event = tuple[int, Generated | None] | FaaSMoEError
"""A sequence's number and its next token, or None at its end; or the error that ends all sequences."""


@dataclass(eq=False)
class TokenStream:
    """The tokens of a request's sequences as they are generated."""

    sequences: list[Sequence]
    loop: asyncio.AbstractEventLoop
    """The event loop in which the stream is read."""
    _events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    _running: int = field(init=False)
    """Sequences whose end has not been read yet."""

    def __post_init__(self) -> None:
        self._running = len(self.sequences)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Generated]]:
        """Yield each token with its sequence's number until all have ended, or raise the error."""
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
        """Wait until all sequences have ended, with or without an error."""
        with suppress(FaaSMoEError):
            async for _ in self:
                pass

    def put(self, event: Event) -> None:
        """Add an event. Call it on the loop's thread."""
        self._events.put_nowait(event)


@dataclass
class Outbox:
    """Collects the events of a step, because each hand-over wakes the other thread."""

    _events: dict[asyncio.AbstractEventLoop, list[tuple[TokenStream, Event]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, stream: TokenStream, event: Event) -> None:
        """Add an event for the next `flush`."""
        self._events[stream.loop].append((stream, event))

    def flush(self) -> None:
        """Hand all events over to their streams' loops. Events for a closed loop are dropped."""
        for loop, events in self._events.items():
            try:
                loop.call_soon_threadsafe(_deliver, events)
            except RuntimeError:
                logger.debug("the event loop of %d events is closed", len(events))
        self._events.clear()


def _deliver(events: list[tuple[TokenStream, Event]]) -> None:
    for stream, event in events:
        stream.put(event)

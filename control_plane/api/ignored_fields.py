"""Logs, counts or refuses fields of requests that have no effect."""

import logging
from collections.abc import Callable, Set
from dataclasses import dataclass, field

from control_plane.errors import BadRequest
from control_plane.validation import MAX_QUOTED, quoted

logger = logging.getLogger(__name__)

OTHER = "other"
"""The name under which unknown fields are counted, since clients may send any number of names."""
MAX_NAMED = 200
"""The most names of fields that are logged."""


@dataclass(frozen=True)
class IgnoredFields:
    """Counts fields that have no effect, or refuses them."""

    strict: bool
    """Whether they are refused."""
    known: Set[str]
    """The names that have counters of their own."""
    count: Callable[[str], None]
    """Called once for each known name in a request, and once with `OTHER` for all other names."""
    _named: set[str] = field(default_factory=set, init=False)

    def note(self, names: tuple[str, ...]) -> None:
        """Count the fields of one request. Raises `BadRequest` if they are refused."""
        if names and self.strict:
            name = names[0][:MAX_QUOTED]
            raise BadRequest(f"{name}: this field is not supported", name.partition(".")[0])
        for label in {name if name in self.known else OTHER for name in names}:
            self.count(label)
        for name in names:
            short = name[:MAX_QUOTED]
            if short not in self._named and len(self._named) < MAX_NAMED:
                self._named.add(short)
                logger.info("requests have the field %s, which has no effect here", quoted(short))

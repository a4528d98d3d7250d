"""The names of the served model."""

from dataclasses import dataclass
from typing import Any

from control_plane.errors import UnknownModel


@dataclass(frozen=True)
class ServedModels:
    """The names by which requests may ask for the model, at least one."""

    names: tuple[str, ...]

    @property
    def default(self) -> str:
        """The name in answers to requests that name no model, and in metrics."""
        return self.names[0]

    def named(self, name: str) -> str:
        """The name itself. Raises `UnknownModel` if it is none of the model's."""
        if name not in self.names:
            raise UnknownModel(name, *self.names)
        return name

    def asked(self, body: Any) -> str:
        """The name that a request's decoded body asks for. Raises `UnknownModel`.

        A body whose `model` is not a string gets the default; its parser refuses what is wrong with it.
        """
        name = body.get("model") if isinstance(body, dict) else None
        return self.named(name) if isinstance(name, str) else self.default

"""The names of models on a hub: ORG/NAME, with a revision or a file if one is meant."""

import re
from dataclasses import dataclass

from control_plane.errors import ConfigError

_WORD = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
_NAME = re.compile(
    rf"(?P<repository>{_WORD}/{_WORD})(@(?P<revision>[\w./-]{{1,255}}))?(:(?P<file>[\w./ +-]{{1,255}}))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubName:
    """A model on a hub."""

    repository: str
    """ORG/NAME."""
    revision: str | None = None
    """A branch, a tag or a commit; None for the main branch."""
    file: str = ""
    """A file, or a quantisation such as Q4_K_M, if the repository has several models in GGUF."""

    @classmethod
    def parse(cls, text: str) -> "HubName":
        """Parse ORG/NAME[@REVISION][:FILE]. Raises ConfigError for another text."""
        found = _NAME.fullmatch(text)
        if found is None or ".." in text:
            raise ConfigError(
                f"{text[:200]!r} is no file or folder here, and no model's id, such as org/name, "
                "org/name@revision or org/name:Q4_K_M"
            )
        return cls(found["repository"], found["revision"], found["file"] or "")

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repository}{revision}" + (f":{self.file}" if self.file else "")

"""A model's repository on a hub, at one commit: its files and their sizes."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.utils import build_hf_headers, disable_progress_bars, get_session, hf_raise_for_status
from huggingface_hub.utils import logging as hub_logging

from control_plane.errors import HubError
from control_plane.hub.cache import COMMIT
from control_plane.hub.names import HubName
from control_plane.hub.problems import hub_errors

ANSWER_SECONDS = 10.0
"""The longest that the hub may take to begin an answer, or to go on with one."""
MAX_FILES = 100_000
MAX_FILE_NBYTES = 1 << 44

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME_LENGTH = 500


@dataclass(frozen=True)
class RemoteFile:
    """A file's size in bytes, and its SHA-256 (hex) if the hub states it, as it does for large files."""

    nbytes: int
    sha256: str | None


@dataclass(frozen=True)
class Repository:
    """What a hub lists of a model."""

    name: HubName
    commit: str
    files: Mapping[str, RemoteFile]
    """By their paths in the repository."""

    @classmethod
    def open(cls, name: HubName) -> "Repository":
        """Ask the hub. Raises HubError, or its HubUnreachable."""
        # Its messages have addresses with signatures, and its bars one line for each file.
        hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        disable_progress_bars()
        with hub_errors(name):
            found = HfApi().model_info(
                name.repository, revision=name.revision or "main", files_metadata=True, timeout=ANSWER_SECONDS
            )
            siblings = found.siblings or []
            if not COMMIT.fullmatch(found.sha or "") or len(siblings) > MAX_FILES:
                raise HubError(f"the hub's list of the files of {name.repository} is malformed")
            return cls(name, str(found.sha), {each.rfilename: _file(name, each) for each in siblings})

    def nbytes(self, file: str) -> int:
        """The size of a file. Raises HubError if the repository does not have it."""
        if file not in self.files:
            raise HubError(f"{self.name.repository} lacks {file[:200]!r}")
        return self.files[file].nbytes

    def read(self, file: str, start: int, count: int) -> bytes:
        """At most `count` bytes of a file from `start` on, fewer at its end. Raises HubError."""
        if not count:
            return b""
        with hub_errors(self.name), self._stream(file, start, count) as response:
            hf_raise_for_status(response)
            if start and response.status_code != 206:
                raise HubError(f"the hub does not send parts of {file[:200]!r}")
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                # A server that knows no ranges would send all of the file.
                if len(data) >= count:
                    break
            return bytes(data[:count])

    def url(self, file: str) -> str:
        """The address of a file."""
        return hf_hub_url(self.name.repository, file, revision=self.commit)

    @contextmanager
    def _stream(self, file: str, start: int, count: int) -> Iterator[Any]:
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{start + count - 1}"}
        # Compressed, a range would be one of other bytes.
        headers["Accept-Encoding"] = "identity"
        with get_session().stream(
            "GET", self.url(file), headers=headers, timeout=ANSWER_SECONDS, follow_redirects=True
        ) as response:
            yield response


def _file(name: HubName, sibling: Any) -> RemoteFile:
    """Raises HubError for a file whose name or size cannot be."""
    path, lfs = sibling.rfilename, sibling.lfs
    nbytes = sibling.size if lfs is None else lfs.size
    if type(nbytes) is not int or not 0 <= nbytes <= MAX_FILE_NBYTES or len(path) > _NAME_LENGTH:
        raise HubError(f"the hub's list of the files of {name.repository} is malformed: {path[:80]!r}")
    sha256 = str(lfs.sha256) if lfs is not None else ""
    return RemoteFile(nbytes, sha256 if _SHA256.fullmatch(sha256) else None)

"""Where the hub's library keeps what it has downloaded.

Its layout is documented: https://huggingface.co/docs/huggingface_hub/guides/manage-cache. A model's folder
has the files by their hashes (`blobs`), links to them by commit and name (`snapshots`), and the commits of
branches and tags (`refs`).
"""

import re
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name

from control_plane.files import write_atomically
from control_plane.hub.names import HubName

COMMIT = re.compile(r"[0-9a-f]{40}")


def cached(name: HubName, commit: str, file: str) -> Path | None:
    """Where a file of a model is; None if it is not there."""
    found = try_to_load_from_cache(name.repository, file, revision=commit)
    return Path(found) if isinstance(found, str) else None


def known_commit(name: HubName) -> str | None:
    """The commit that the name's branch or tag was when it was downloaded; None if it never was.

    For a time without a network, when nobody can say which commit is the newest.
    """
    reference = _reference(name)
    commit = reference.read_text() if reference.is_file() else name.revision or ""
    return commit if COMMIT.fullmatch(commit) else None


def snapshot(name: HubName, commit: str) -> Path:
    """The folder with the files of a model, as far as they are there."""
    return _folder(name) / "snapshots" / commit


def remember(name: HubName, commit: str) -> None:
    """Write down which commit the name's branch or tag is. Raises OSError."""
    if name.revision != commit:
        reference = _reference(name)
        reference.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(reference, commit.encode(), 0o644)


def blob_file(name: HubName, sha256: str) -> Path:
    """The place of a file with that hash."""
    return _folder(name) / "blobs" / sha256


def partial_of(blob: Path) -> Path:
    """The place of what is there of a file that is not complete."""
    return blob.with_name(f"{blob.name}.incomplete")


def _folder(name: HubName) -> Path:
    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name.repository, repo_type="model"))


def _reference(name: HubName) -> Path:
    return _folder(name) / "refs" / (name.revision or "main")

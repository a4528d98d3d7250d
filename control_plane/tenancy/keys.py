"""Makes, reads, checks and hashes API keys."""

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path

from control_plane.errors import ConfigError
from control_plane.tenancy.tenants import check_name

MAIN = "main"
"""The name of the key that a tenant is added or declared with."""
MIN_KEY_CHARACTERS = 20
"""Least length of a key that a person chose."""
_MAX_FILE_BYTES = 4096


@dataclass(frozen=True)
class KeyRecord:
    """A key's name and times. The key itself is not stored."""

    name: str
    """Unique among the tenant's keys."""
    created: float
    """Unix time in seconds, like `expires`."""
    expires: float | None
    """The time from which on the key is refused; None is never."""

    def has_expired(self, now: float) -> bool:
        """Whether the key is refused at this time."""
        return self.expires is not None and self.expires <= now


def check_key_name(name: str) -> None:
    """Raise `ConfigError` unless `name` is a valid name for a key."""
    check_name(name, "a key's name")


def new_key() -> str:
    """Make a key of 256 random bits."""
    return "fm-" + secrets.token_urlsafe(32)


def hash_key(key: str) -> bytes:
    """The SHA-256 under which a key is stored and looked up.

    A slow, salted hash protects passwords, which are guessable. A key of 256 random bits is not guessable at
    any speed, and a hash without salt can be looked up in an index.
    """
    # A header may hold bytes that are not valid text: they are surrogates here.
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def checked_key(key: str, what: str = "the key") -> str:
    """Return the key. Raises `ConfigError` for one that is too short or not printable ASCII.

    `what` names the key in the error, which does not show the key itself.
    """
    if len(key) < MIN_KEY_CHARACTERS:
        raise ConfigError(f"{what} has {len(key)} characters, and needs at least {MIN_KEY_CHARACTERS}")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{what} may have only printable ASCII characters, and no space")
    return key


def read_key(path: Path) -> str:
    """Read a key from a file, without surrounding white space. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        text = data.decode()
    # ValueError: the path or the content is no text.
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the key file {path}: {error}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"the key file {path} has more than {_MAX_FILE_BYTES} bytes")
    return checked_key(text.strip(), f"the key in {path}")

"""API keys: made, read from files, and hashed."""

import hashlib
import secrets
from pathlib import Path

from control_plane.errors import ConfigError

MIN_KEY_CHARACTERS = 20
"""Of a key that somebody chose."""


def new_key() -> str:
    """A key of 256 random bits."""
    return "fm-" + secrets.token_urlsafe(32)


def hash_key(key: str) -> bytes:
    """The SHA-256 by which a key is stored and found.

    A slow, salted hash makes guessing passwords costly, of which people choose few. 256 random bits cannot
    be guessed at any speed, and a fast hash without salt can be looked up.
    """
    # A header may hold anything, also what is no text.
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def checked_key(key: str, what: str = "the key") -> str:
    """The key itself. Raises `ConfigError`, which does not show it, for one that is too short or odd."""
    if len(key) < MIN_KEY_CHARACTERS:
        raise ConfigError(f"{what} has {len(key)} characters, and needs at least {MIN_KEY_CHARACTERS}")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{what} may have only printable ASCII characters, and no space")
    return key


def read_key(path: Path) -> str:
    """The key that a file holds, without the space around it. Raises `ConfigError`."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the key file {path}: {error}") from error
    return checked_key(text.strip(), f"the key in {path}")

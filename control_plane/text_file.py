"""Reads text files of one entry a line."""

from pathlib import Path

from control_plane.errors import ConfigError


def read_lines(file: Path) -> list[tuple[str, str]]:
    """The lines that are not empty, each after where it stands. Raises `ConfigError`."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8: {error}") from error
    return [(f"{file}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]

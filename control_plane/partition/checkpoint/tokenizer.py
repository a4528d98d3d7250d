"""Reads a checkpoint's tokenizer for the partition to store."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from control_plane.errors import PartitionError
from control_plane.files import regular_size
from control_plane.partition.checkpoint.gguf.files import gguf_files
from control_plane.partition.checkpoint.gguf.tokenizer import has_tokenizer

MAX_TOKENIZER_BYTES = 256 << 20
"""The largest file of a tokenizer, read or stored. Vocabularies of 256,000 tokens take 35 MB."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
READ_SECONDS = 120.0
"""The longest that reading may take. A vocabulary of 150,000 tokens takes two seconds."""
_OTHERS = ("merges.txt", "added_tokens.json", "special_tokens_map.json")
_MAX_ERROR = 300
_READ_OF_ERRORS = 4096
_PACKAGES = str(Path(__file__).parents[3])


def read_tokenizer(checkpoint: Path) -> bytes | None:
    """The tokenizer of a checkpoint or GGUF file, as `ModelTokenizer.json` writes it; None if there is none.

    Raises `PartitionError`, whatever the files hold.
    """
    if files := gguf_files(checkpoint):
        return _read(files[0], f"in {files[0]}") if has_tokenizer(files[0]) else None
    # Without these files, transformers would make up an empty tokenizer instead of failing.
    if not any((checkpoint / name).exists() for name in TOKENIZER_FILES):
        return None
    for name in (*TOKENIZER_FILES, *_OTHERS):
        path = checkpoint / name
        if path.exists() and regular_size(path) > MAX_TOKENIZER_BYTES:
            raise PartitionError(f"{path} has more than {MAX_TOKENIZER_BYTES} bytes")
    return _read(checkpoint, f"in {checkpoint}")


def _read(source: Path, where: str) -> bytes:
    """The tokenizer that a process of its own reads from a folder or a GGUF file."""
    command = (sys.executable, "-P", "-m", "control_plane.partition.checkpoint.tokenizer_process")
    # The process limits the size of both files.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            result = subprocess.run(
                [*command, source.absolute(), str(MAX_TOKENIZER_BYTES)],
                env={**os.environ, "PYTHONPATH": _PACKAGES},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                timeout=READ_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            problem = f"it took more than {READ_SECONDS:g} s"
            raise PartitionError(f"cannot load the tokenizer {where}: {problem}") from error
        if result.returncode:
            problem = _last_line(errors) or f"its process ended with {result.returncode}"
            raise PartitionError(f"cannot load the tokenizer {where}: {problem}")
        output.seek(0)
        return output.read()


def _last_line(file: IO[bytes]) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - _READ_OF_ERRORS))
    lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:_MAX_ERROR] if lines else ""

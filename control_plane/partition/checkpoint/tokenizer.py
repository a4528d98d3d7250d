"""Reads a checkpoint's tokenizer for the partition to store."""

import os
import subprocess
import sys
from pathlib import Path

from control_plane.errors import PartitionError
from control_plane.files import regular_size

MAX_TOKENIZER_BYTES = 256 << 20
"""The largest file of a tokenizer. Vocabularies of 256,000 tokens take 35 MB."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
READ_SECONDS = 120.0
"""The longest that reading may take. A vocabulary of 150,000 tokens takes two seconds."""
_OTHERS = ("merges.txt", "added_tokens.json", "special_tokens_map.json")
_MAX_ERROR = 300
_PACKAGES = str(Path(__file__).parents[3])


def read_tokenizer(checkpoint: Path) -> bytes | None:
    """The tokenizer in a checkpoint's folder, as `ModelTokenizer.json` writes it; None if there is none.

    Raises `PartitionError`, whatever the files hold.
    """
    # Without these files, transformers would make up an empty tokenizer instead of failing.
    if not any((checkpoint / name).exists() for name in TOKENIZER_FILES):
        return None
    for name in (*TOKENIZER_FILES, *_OTHERS):
        path = checkpoint / name
        if path.exists() and regular_size(path) > MAX_TOKENIZER_BYTES:
            raise PartitionError(f"{path} has more than {MAX_TOKENIZER_BYTES} bytes")
    command = (sys.executable, "-P", "-m", "control_plane.partition.checkpoint.tokenizer_process")
    try:
        result = subprocess.run(
            [*command, checkpoint.absolute()],
            env={**os.environ, "PYTHONPATH": _PACKAGES},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=READ_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        problem = f"it took more than {READ_SECONDS:g} s"
        raise PartitionError(f"cannot load the tokenizer in {checkpoint}: {problem}") from error
    if result.returncode:
        lines = result.stderr.decode(errors="replace").strip().splitlines()
        problem = lines[-1][:_MAX_ERROR] if lines else f"its process ended with {result.returncode}"
        raise PartitionError(f"cannot load the tokenizer in {checkpoint}: {problem}")
    return result.stdout

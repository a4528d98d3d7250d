"""Has a checkpoint's model inspected, by a process of its own that has torch and transformers."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from control_plane.errors import PartitionError, UnsupportedModel
from control_plane.partition.checkpoint.reader import Checkpoint
from control_plane.partition.model.architecture import Architecture
from control_plane.validation import Invalid, convert

INSPECTION_SECONDS = 300.0
"""The longest that an inspection may take. The largest models take twenty seconds."""
MAX_ANSWER = 256 << 20
"""Bytes of the largest description."""
UNSUPPORTED = 3
"""The process's exit status for a model that cannot be served; 1 is for a checkpoint that is wrong."""
_PACKAGES = str(Path(__file__).parents[3])
_MAX_ERROR = 400
_READ_OF_ERRORS = 4096


def inspect(checkpoint: Checkpoint) -> Architecture:
    """What the checkpoint's model is, and how it can be served.

    Raises UnsupportedModel for a model that cannot, PartitionError for a checkpoint that is wrong.
    """
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    question = json.dumps({"config": checkpoint.config, "shapes": shapes}).encode()
    with (
        tempfile.TemporaryFile() as asked,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
    ):
        asked.write(question)
        asked.seek(0)
        try:
            result = subprocess.run(
                [sys.executable, "-P", "-m", "control_plane.architecture", str(MAX_ANSWER)],
                env={**os.environ, "PYTHONPATH": _PACKAGES},
                stdin=asked,
                stdout=output,
                stderr=errors,
                timeout=INSPECTION_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            problem = f"it took more than {INSPECTION_SECONDS:g} s"
            raise PartitionError(f"cannot inspect the model in {checkpoint.folder}: {problem}") from error
        if result.returncode:
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - _READ_OF_ERRORS))
            lines = errors.read().decode(errors="replace").strip().splitlines()
            problem = lines[-1][:_MAX_ERROR] if lines else f"its process ended with {result.returncode}"
            kind = UnsupportedModel if result.returncode == UNSUPPORTED else PartitionError
            raise kind(f"{checkpoint.folder}: {problem}")
        output.seek(0)
        answer = output.read()
    try:
        return convert(msgspec.json.decode(answer), Architecture)
    except (Invalid, msgspec.DecodeError) as error:
        raise PartitionError(f"cannot inspect the model in {checkpoint.folder}: {error}") from error

"""Inspects the model of a checkpoint: `python -m control_plane.architecture MAX_BYTES`.

Standard input has the object in config.json and the shapes of all tensors, as JSON; standard output gets an
`Architecture`. It is a process of its own because transformers takes much memory, and because a checkpoint's
files may make it hang or crash. An error is one line on standard error.
"""

import json
import os
import resource
import sys

import msgspec

from control_plane.errors import FaaSMoEError, UnsupportedModel
from control_plane.partition.model.inspection import UNSUPPORTED

_MAX_MEMORY = 8 << 30
"""Bytes that the process may allocate. The largest models take some hundreds of megabytes."""


def main() -> None:
    """Answer one question."""
    max_bytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_MEMORY, _MAX_MEMORY))
    os.environ["HF_HUB_OFFLINE"] = "1"
    question = json.load(sys.stdin.buffer)
    try:
        from control_plane.architecture.choice import architecture_of

        shapes = {name: tuple(shape) for name, shape in question["shapes"].items()}
        answer = architecture_of(question["config"], shapes)
    except FaaSMoEError as error:
        print(error, file=sys.stderr)
        sys.exit(UNSUPPORTED if isinstance(error, UnsupportedModel) else 1)
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()

"""Writes a checkpoint's tokenizer to standard output, in the form in which a partition stores it.

    python -m control_plane.partition.checkpoint.tokenizer_process CHECKPOINT MAX_BYTES

It writes at most MAX_BYTES to each of its files. It is a process of its own because transformers knows all
forms of tokenizers, but takes much memory, and because a tokenizer's files may hang or crash the library. An
error is one line on standard error.
"""

import resource
import sys
from pathlib import Path


def main() -> None:
    """Read the tokenizer in the folder or GGUF file that is the first argument."""
    checkpoint, max_bytes = Path(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
    # Tokenizers need no torch, whose import takes a second and 150 MB.
    sys.modules["torch"] = None  # type: ignore[assignment]
    from transformers import AutoTokenizer
    from transformers.utils.logging import set_verbosity_error

    from control_plane.partition.checkpoint.gguf.files import SUFFIX
    from control_plane.partition.checkpoint.gguf.tokenizer import gguf_tokenizer
    from control_plane.partition.checkpoint.stored_tokenizer import ModelTokenizer

    set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        is_gguf = checkpoint.suffix == SUFFIX and checkpoint.is_file()
        read = gguf_tokenizer if is_gguf else AutoTokenizer.from_pretrained
        stored = ModelTokenizer.of(read(checkpoint)).json()
    except BaseException as error:  # The library's panics are not Exceptions.
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
    if len(stored) > max_bytes:
        sys.exit(f"it has more than {max_bytes} bytes")
    sys.stdout.buffer.write(stored)


if __name__ == "__main__":
    main()

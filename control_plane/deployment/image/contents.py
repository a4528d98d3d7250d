"""The files of a functions' image, whichever tool builds it: the blocks, and the code that serves them."""

from pathlib import Path

import functions
from control_plane.partition.manifest import Manifest

MODEL_ANNOTATION = "faasmoe.model"
"""The annotation with the partition's fingerprint."""
SOURCES = "functions"
"""The package that runs in the image."""
OWNER = 10001
"""User and group of the process and its files. A number: Kubernetes cannot see whether a name is root's."""
MAX_BLOCK_LAYERS = 100
"""Docker allows 127 layers; blocks beyond this number share one layer."""


def block_layers(manifest: Manifest) -> list[list[str]]:
    """The block files of each layer: one per layer, as long as there are layers left.

    A block that changes is then the only one that is pushed and pulled again.
    """
    files = [block.file for block in manifest.blocks]
    own, shared = files[: MAX_BLOCK_LAYERS - 1], files[MAX_BLOCK_LAYERS - 1 :]
    return [[file] for file in own] + ([shared] if shared else [])


def source_folder() -> Path:
    """The installed `functions` package."""
    return Path(functions.__path__[0])

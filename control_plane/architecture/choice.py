"""Chooses how a model is served: the fastest way that computes what transformers computes."""

from collections.abc import Mapping
from typing import Any

from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from control_plane.architecture.describe import describe
from control_plane.architecture.model import language_config
from control_plane.architecture.tensors import Shapes
from control_plane.partition.model.architecture import Architecture


def architecture_of(document: Mapping[str, Any], shapes: Shapes) -> Architecture:
    """The model of a config.json and of tensors of these shapes.

    Raises UnsupportedModel for a model that cannot be served, PartitionError for tensors that do not fit.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
    config = language_config(document)
    return describe(config, shapes, "program")

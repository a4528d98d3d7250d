"""Chooses how a model is served: the fastest way that computes what transformers computes."""

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace
from transformers import PretrainedConfig
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from control_plane.architecture.describe import describe
from control_plane.architecture.model import empty_model, language_config
from control_plane.architecture.programs.describe import program_of
from control_plane.architecture.tensors import Shapes
from control_plane.architecture.trial import TOLERANCE, Trial, differences
from control_plane.errors import FaaSMoEError, PartitionError, UnsupportedModel
from control_plane.partition.model.architecture import Architecture

TRIALS = (Trial("program"), Trial("ragged"), Trial("lockstep"), Trial("lockstep", chunks_prompts=False))
"""The fastest first."""
_MAX_ERROR = 120


def architecture_of(document: Mapping[str, Any], shapes: Shapes) -> Architecture:
    """The model of a config.json and of tensors of these shapes.

    Raises UnsupportedModel for a model that cannot be served, PartitionError for tensors that do not fit.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        config = language_config(document)
        # What is wrong with the checkpoint itself shall be said first.
        described = describe(config, shapes)
        return _first_right(config, described)
    except FaaSMoEError:
        raise
    except Exception as error:  # A config that its family's code does not expect raises anything.
        raise PartitionError(f"config.json makes no model: {_in_words(error)}") from error


def _first_right(config: PretrainedConfig, described: Architecture) -> Architecture:
    problems = []
    for trial, found in differences(config, TRIALS):
        try:
            if isinstance(found, float) and found <= TOLERANCE:
                program = trial.kind and program_of(empty_model(config), described, trial.kind)
                return replace(described, way=trial.way, chunks_prompts=trial.chunks_prompts, program=program)
        except UnsupportedModel as error:  # Only of the small model, programs are right.
            found = error
        problems.append(f"{trial}: {_in_words(found)}")
    raise UnsupportedModel(
        f"a small {config.model_type} model gave other logits than transformers: {'; '.join(problems)}"
    )


def _in_words(found: float | Exception) -> str:
    if isinstance(found, float):
        return f"logits differ by {found:.1e}"
    return f"{type(found).__name__} {' '.join(str(found).split())}"[:_MAX_ERROR]

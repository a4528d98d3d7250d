"""Layer programs of all families in bfloat16, which trials do not try, are near transformers' modules."""

from pathlib import Path

import numpy as np
import pytest

from control_plane.architecture.shrink import shrunk
from control_plane.architecture.trial import published, random_model
from control_plane.engine.loader import load_model
from control_plane.engine.model.program_model import ProgramModel
from control_plane.partition.partitioner import partition
from functions.kernels.bfloat16 import as_f32
from tests.engine.model.test_program_model import computed, sequences, whole
from tests.support.models.families import PROGRAMS, family_config
from tests.support.models.modules import in_modules

pytestmark = pytest.mark.slow

MEAN_ERROR = 0.04
"""The root mean square, as a share of the spread. A row for which rounding makes the routers choose another
expert differs by more."""


@pytest.mark.parametrize("family", sorted(PROGRAMS))
def test_hidden_states_are_near_those_of_transformers_modules(family: str, tmp_path: Path) -> None:
    checkpoint = published(random_model(shrunk(family_config(family))), tmp_path / "model")
    manifest = partition(checkpoint, tmp_path / "partition", dtype="bf16")
    program = load_model(tmp_path / "partition", manifest, threads=1)
    assert isinstance(program, ProgramModel)
    batch = [whole(each) for each in sequences()]
    (found,), (expected,) = (
        computed(model, [batch]) for model in (program, in_modules(tmp_path / "partition", manifest))
    )
    difference = as_f32(found) - as_f32(expected)
    by_row = np.sqrt(np.square(difference).mean(axis=1)) / as_f32(expected).std()
    assert np.median(by_row) < MEAN_ERROR
    assert found.dtype == np.uint16

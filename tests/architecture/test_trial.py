"""A small model shows what a way leaves out."""

from dataclasses import replace
from typing import Any

import pytest

from control_plane.architecture.trial import TOLERANCE, Trial, differences
from control_plane.engine.model.transformers_model.ragged import attention
from control_plane.engine.model.transformers_model.ragged.batch import AttentionCall
from tests.support.models.families import family_config

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("family", "argument"), [("inkling_text", "bias"), ("gpt_oss", "sinks")])
def test_a_dropped_argument_of_attention_is_seen(
    family: str, argument: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*args: Any) -> AttentionCall:
        changes: Any = {argument: None}
        return replace(AttentionCall(*args), **changes)

    monkeypatch.setattr(attention, "AttentionCall", call)
    ((_, found),) = differences(family_config(family), [Trial("ragged")])
    assert isinstance(found, float)
    assert found > 100 * TOLERANCE

"""Every MoE family that transformers can build is served as transformers computes it, or refused by name.

A new version of transformers that breaks a family, or adds one, fails here.
"""

import asyncio
from pathlib import Path

import pytest
import torch

from control_plane.architecture.choice import TRIALS, architecture_of
from control_plane.architecture.shrink import shrunk
from control_plane.architecture.trial import TOLERANCE, Trial, differences, published, random_model
from control_plane.errors import PartitionError, UnsupportedModel
from control_plane.partition.granularity import Granularity
from control_plane.partition.partitioner import partition
from tests.support.models.families import MOE_FAMILIES, PROGRAMS, family_config
from tests.support.models.tiny_engine import greedy_answers, tokens_of
from tests.support.running import sequence, served

pytestmark = pytest.mark.slow

NO_INTERFACE = "has no experts that transformers' interface replaces"
NO_KERNEL = "no kernel computes the activation of"
REFUSED = {
    "doge": NO_INTERFACE,
    "jetmoe": NO_INTERFACE,
    "llama4_text": NO_INTERFACE,
    "longcat_flash": NO_INTERFACE,
    # They cap what gate and up give by a tanh.
    "inkling2_text": NO_KERNEL,
    "inkling2_loop_text": NO_KERNEL,
    # It has a cache of its own, and the one of transformers forgets its state where a prompt is cut.
    "minimax": "gave other logits than transformers",
}
LOCKSTEP = frozenset(
    {
        "axk2",
        "deepseek_v32",
        "deepseek_v4",
        "dots3_note_text",
        "glm_moe_dsa",
        "hy_v4",
        "jamba",
        "qwen4_exp_text",
    }
)
"""Families that choose among keys or compress them, or cannot go on with a state where a prompt is cut."""
WHOLE_PROMPTS = frozenset({"jamba"})
SERVED = [family for family in MOE_FAMILIES if family not in REFUSED]
MAX_TOKENS = 12
PROMPT_LENGTHS = (1, 7, 30)


def right(family: str) -> Trial:
    """The first trial that is right."""
    if family in WHOLE_PROMPTS:
        return Trial("lockstep", chunks_prompts=False)
    return Trial("lockstep" if family in LOCKSTEP else "program" if family in PROGRAMS else "ragged")


@pytest.mark.parametrize("family", SERVED)
def test_logits_are_those_of_the_unsplit_model(family: str) -> None:
    """In all ways that are right; the others are seen to be wrong."""
    found = {
        trial: isinstance(difference, float) and difference <= TOLERANCE
        for trial, difference in differences(family_config(family), TRIALS)
    }
    assert found == {
        Trial("program"): family in PROGRAMS,
        Trial("ragged"): family not in LOCKSTEP,
        Trial("lockstep"): family not in WHOLE_PROMPTS,
        Trial("lockstep", chunks_prompts=False): True,
    }


# The small config of dots3-note has no sizes by layer any more, and cannot be made small once again.
@pytest.mark.parametrize("family", [family for family in SERVED if family != "dots3_note_text"])
def test_greedy_tokens_are_those_of_generate(family: str, tmp_path: Path) -> None:
    """From a checkpoint in the published form, through functions and engine."""
    model = random_model(shrunk(family_config(family)))
    checkpoint = published(model, tmp_path / "model")
    manifest = partition(checkpoint, tmp_path / "partition", granularity=Granularity(5, 1), dtype="f32")
    assert Trial(manifest.way, manifest.chunks_prompts) == right(family)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 90, (1, length), generator=generator) for length in PROMPT_LENGTHS]

    async def answers() -> list[list[int]]:
        async with served(tmp_path / "partition", max_batch_tokens=16, max_sequences=4) as serving:
            streams = [serving.engine.submit([sequence(prompt, MAX_TOKENS)]) for prompt in prompts]
            return [await tokens_of(stream) for stream in streams]

    assert asyncio.run(answers()) == [greedy_answers(model, prompt, MAX_TOKENS)[0] for prompt in prompts]


@pytest.mark.parametrize(("family", "reason"), REFUSED.items())
def test_others_are_refused_in_one_line(family: str, reason: str) -> None:
    config = family_config(family)
    shapes = {}
    if family == "minimax":
        model = random_model(shrunk(config))
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        config = model.config
    with pytest.raises((PartitionError, UnsupportedModel), match=reason) as caught:
        architecture_of(config.to_dict(), shapes)
    assert "\n" not in str(caught.value)


def test_every_family_is_served_or_refused() -> None:
    assert {*SERVED} >= LOCKSTEP | PROGRAMS
    assert REFUSED.keys() <= {*MOE_FAMILIES}

"""Runs prompts through a partition, and records which experts they use, and with what inputs."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from control_plane.api.text.prompts import PromptEncoder
from control_plane.api.text.request import Chat, Prompt
from control_plane.engine.engine import Engine
from control_plane.engine.experts.routing_recorder import RoutingRecorder
from control_plane.engine.state import sequence
from control_plane.errors import ConfigError, FaaSMoEError
from control_plane.files import read_lines
from control_plane.offline.engine import offline_engine
from control_plane.partition.manifest import Manifest
from control_plane.partition.profile import Profile


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: its lines, or in a .jsonl file, the "prompt" field of each line.

    Empty lines are skipped. Raises `ConfigError`, which names the line.
    """
    lines = read_lines(path)
    if not lines:
        raise ConfigError(f"{path} has no prompts")
    if path.suffix != ".jsonl":
        return [line for _, line in lines]
    return [_prompt_of(line, where) for where, line in lines]


async def profile(partition: Path, prompts: Sequence[str], max_tokens: int) -> Profile:
    """Count the experts that the prompts, and sampled answers of up to `max_tokens`, are routed to.

    Each prompt is sent as a chat, or continued as text if the model has no chat template that works. Raises
    `PartitionError`, `GatewayError`, and `ConfigError` for a prompt that cannot run.
    """
    manifest = Manifest.load(partition)
    async with offline_engine(partition, manifest) as (runner, encoder, engine):
        sequences = [
            await _sequence(encoder, engine, prompt, number, max_tokens)
            for number, prompt in enumerate(prompts, 1)
        ]
        recorder = RoutingRecorder(manifest.moe_layers, manifest.num_experts, manifest.hidden_size)
        runner.dispatcher.observers.append(recorder)
        await asyncio.gather(*(_answered(engine, each) for each in sequences))
    return Profile(manifest.name, recorder.use, recorder.together, recorder.input_squares)


async def _sequence(
    encoder: PromptEncoder, engine: Engine, text: str, number: int, max_tokens: int
) -> sequence.Sequence:
    prompt: Prompt = text if encoder.chat_problem else Chat([{"role": "user", "content": text}])
    params = sequence.SamplingParams(max_tokens, temperature=1.0, seed=number)
    try:
        made = sequence.Sequence(f"prompt-{number}", "profile", await encoder.encode(prompt), params)
        engine.check(made)
    except FaaSMoEError as error:
        raise ConfigError(f"prompt {number}: {error}") from error
    return made


async def _answered(engine: Engine, prompt: sequence.Sequence) -> None:
    async for _ in engine.submit([prompt]):
        pass


def _prompt_of(line: str, where: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: it is not JSON: {error}") from error
    prompt = entry.get("prompt") if isinstance(entry, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ConfigError(f"{where}: prompt: it must be a string with text")
    return prompt

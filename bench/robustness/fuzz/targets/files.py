"""Files that users bring or edit: manifests, checkpoints, settings and workloads."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import yaml
from transformers import AutoConfig

from bench.comparison.workload import workload
from bench.comparison.workload.traces import TRACES, Conversion
from bench.robustness.fuzz.support import model
from bench.robustness.fuzz.support.json_mutation import mutated_json, mutated_message
from bench.robustness.fuzz.support.mutation import mutated
from bench.robustness.fuzz.support.target import Target
from bench.support.checkpoint import random_checkpoint
from bench.support.gguf.model import GgufModel
from bench.support.gguf.writer import write as write_gguf
from control_plane.architecture.choice import architecture_of
from control_plane.architecture.shrink import shrunk
from control_plane.config import ServeConfig
from control_plane.errors import FaaSMoEError
from control_plane.partition.checkpoint.gguf.container import read_header
from control_plane.partition.checkpoint.reader import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, Checkpoint
from control_plane.partition.manifest import Manifest
from control_plane.partition.model.inspection import inspect
from control_plane.partition.plan import Plan
from functions.contract.manifest import MANIFEST_FILE
from functions.expert.expert_block import BlockError, ExpertBlock
from functions.kernels import load_kernel

_FAMILIES = ("qwen2_moe", "deepseek_v3", "gpt_oss", "qwen3_next", "granitemoehybrid", "gemma4_text")


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="faasmoe-fuzz-") as folder:
        yield Path(folder)


def _is_read(read: Callable[[], object], *refusals: type[Exception]) -> bool:
    try:
        read()
    except refusals:
        return False
    return True


@contextmanager
def manifests(folder: Path) -> Iterator[Target]:
    """The manifest of a partition, as the control plane reads it."""
    document = json.loads((folder / "bf16" / MANIFEST_FILE).read_bytes())
    with _scratch() as scratch:

        def run(data: bytes) -> bool:
            (scratch / MANIFEST_FILE).write_bytes(data)
            return _is_read(lambda: Manifest.load(scratch), FaaSMoEError)

        yield Target(lambda random: mutated_json(document, random), run)


@contextmanager
def blocks(folder: Path) -> Iterator[Target]:
    """The manifest of a partition, as a function reads it when it opens its block."""
    with _scratch() as scratch:
        shutil.copytree(folder / "bf16", scratch, dirs_exist_ok=True)
        document = json.loads((scratch / MANIFEST_FILE).read_bytes())
        function = document["blocks"][0]["function"]

        def open_block() -> None:
            block = ExpertBlock.open(scratch, function, load_kernel(), threads=1)
            block.residency.close()

        def run(data: bytes) -> bool:
            (scratch / MANIFEST_FILE).write_bytes(data)
            return _is_read(open_block, BlockError)

        yield Target(lambda random: mutated_json(document, random), run)


@contextmanager
def checkpoints(folder: Path) -> Iterator[Target]:
    """The files of a checkpoint. An input is the name of one of them, a line break, and its content."""
    source = folder / model.CHECKPOINT
    config = json.loads((source / CONFIG_FILE).read_bytes())
    weights = (source / WEIGHTS_FILE).read_bytes()
    names = list(Checkpoint.open(source).tensors)
    architecture = model.architecture(folder)
    index = {
        "metadata": {"total_size": 9},
        "weight_map": dict.fromkeys(names, "shard.safetensors"),
    }

    def make(random: Random) -> bytes:
        name = random.choice((CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE))
        if name == WEIGHTS_FILE:
            content = mutated_message(weights, random)
        else:
            content = mutated_json(config if name == CONFIG_FILE else index, random)
        return f"{name}\n".encode() + content

    with _scratch() as scratch:

        def run(data: bytes) -> bool:
            name, _, content = data.partition(b"\n")
            (scratch / CONFIG_FILE).write_bytes(
                content if name == CONFIG_FILE.encode() else json.dumps(config).encode()
            )
            (scratch / INDEX_FILE).write_bytes(content)
            (scratch / "shard.safetensors").write_bytes(weights)
            (scratch / WEIGHTS_FILE).unlink(missing_ok=True)
            if name != INDEX_FILE.encode():
                (scratch / WEIGHTS_FILE).write_bytes(content if name == WEIGHTS_FILE.encode() else weights)
            return _is_read(
                lambda: Plan.make(Checkpoint.open(scratch), architecture, None, "auto", "auto", "fuzz"),
                FaaSMoEError,
            )

        yield Target(make, run)


@contextmanager
def models(folder: Path) -> Iterator[Target]:
    """The config of a model of one of several families, as its inspection reads it."""
    documents, shapes = {}, {}
    with _scratch() as scratch:
        for family in _FAMILIES:
            source = scratch / family
            source.mkdir()
            config = shrunk(AutoConfig.for_model(family))
            checkpoint = random_checkpoint(config, source)
            documents[family] = checkpoint.config
            shapes[family] = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}

    def make(random: Random) -> bytes:
        family = random.choice(_FAMILIES)
        return f"{family}\n".encode() + mutated_json(documents[family], random)

    def run(data: bytes) -> bool:
        family, _, content = data.partition(b"\n")
        try:
            document = json.loads(content)
        except ValueError:
            return False
        known = shapes.get(family.decode(errors="replace"), {})
        return isinstance(document, dict) and _is_read(lambda: architecture_of(document, known), FaaSMoEError)

    yield Target(make, run)


@contextmanager
def gguf(folder: Path) -> Iterator[Target]:
    """The header of a model in GGUF."""
    with _scratch() as scratch:
        file = scratch / "model.gguf"
        write_gguf(GgufModel.of_checkpoint(Checkpoint.open(folder / model.CHECKPOINT)), file)
        architecture = inspect(Checkpoint.open(file))
        start = min(tensor.offset for tensor in read_header(file).tensors)
        header, weights = file.read_bytes()[:start], file.read_bytes()[start:]

        def run(data: bytes) -> bool:
            file.write_bytes(data + weights)
            return _is_read(
                lambda: Plan.make(Checkpoint.open(file), architecture, None, "auto", "auto", "fuzz"),
                FaaSMoEError,
            )

        yield Target(lambda random: mutated(header, random), run)


@contextmanager
def config(folder: Path) -> Iterator[Target]:
    """The settings of `faasmoe serve`, with tenants."""
    settings = {
        "host": "127.0.0.1",
        "port": 8000,
        "max_batch_tokens": 512,
        "scheduling": "fair",
        "prefetch": True,
        "memory_budget": "6GB",
        "idle_timeout": "15m",
        "request_timeout": 60.5,
        "log_level": "info",
        "tenants": [
            {"name": "acme", "key_file": "key", "weight": 2, "rpm": 60, "tpm": 1000, "operator": True},
            {"name": "other", "weight": 0.5, "max_concurrency": 4},
        ],
    }
    text = yaml.safe_dump(settings).encode()
    with _scratch() as scratch:
        (scratch / "key").write_text("sk-" + "a" * 40 + "\n")

        def make(random: Random) -> bytes:
            # JSON is YAML, too.
            return mutated_json(settings, random) if random.random() < 0.6 else mutated(text, random)

        def run(data: bytes) -> bool:
            (scratch / "serve.yml").write_bytes(data)
            return _is_read(lambda: ServeConfig.load(scratch / "serve.yml", {}), FaaSMoEError)

        yield Target(make, run)


@contextmanager
def workloads(folder: Path) -> Iterator[Target]:
    """Workloads and public traces for `faasmoe bench`; the first byte of an input chooses the format."""
    lines = [
        {"tenant": "a", "arrival": 0.5, "output_tokens": 3, "prompt": "hello"},
        {"tenant": "b", "arrival": 1, "output_tokens": 3, "prompt_tokens": 20, "round": 0},
        {"tenant": "b", "arrival": 0, "output_tokens": 3, "prompt_tokens": 20, "round": 1},
    ]
    traces = {
        "azure": b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
        b"2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n",
        "burstgpt": b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        b"5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,230,1317,Conversation log\n",
    }
    formats = list(traces)

    def make(random: Random) -> bytes:
        number = random.randrange(len(formats) + 1)
        if number < len(formats):
            return bytes([number]) + mutated(traces[formats[number]], random)
        written = [json.dumps(line).encode() for line in lines]
        written[random.randrange(len(lines))] = mutated_json(random.choice(lines), random)
        return bytes([number]) + b"\n".join(written)

    with _scratch() as scratch:
        path = scratch / "workload"

        def run(data: bytes) -> bool:
            path.write_bytes(data[1:])
            number = data[0] if data else 0
            if number < len(formats):
                conversion = Conversion(("a", "b"), seed=0, scale=0.5)
                return _is_read(lambda: conversion.requests(path, TRACES[formats[number]]), FaaSMoEError)
            return _is_read(lambda: workload.read(path), FaaSMoEError)

        yield Target(make, run)

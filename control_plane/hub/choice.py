"""Chooses the files of a repository that a partition is made of: weights, config and tokenizer; never code or
pickles."""

import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath

from control_plane.errors import HubError
from control_plane.hub.names import HubName
from control_plane.partition.checkpoint.gguf.files import SPLIT, SUFFIX, is_projector
from control_plane.partition.checkpoint.reader import INDEX_FILE, SHARD, WEIGHTS_FILE
from control_plane.partition.companions import COMPANIONS, REFUSED_SUFFIXES

_MAX_NAMED = 20
_SEPARATORS = "-._/"


def companions_of(files: Collection[str]) -> list[str]:
    """The config, the tokenizer's files and the chat templates."""
    return sorted(
        file
        for file in files
        if PurePosixPath(file).suffix not in REFUSED_SUFFIXES
        and any(
            fnmatch.fnmatchcase(file, pattern) and file.count("/") == pattern.count("/")
            for pattern in COMPANIONS
        )
    )


def safetensors_of(files: Collection[str]) -> list[str]:
    """The file with all weights, or the index, or the shards without an index; none if there are none."""
    for single in (WEIGHTS_FILE, INDEX_FILE):
        if single in files:
            return [single]
    return sorted(file for file in files if SHARD.fullmatch(file))


def gguf_of(name: HubName, files: Collection[str]) -> Sequence[str]:
    """The files of the one model in GGUF that the name asks for, in their order.

    Raises HubError if there is none, or if there are several.
    """
    models = _gguf_models(files)
    if not models:
        raise HubError(_without_weights(name, files))
    asked = {stem: parts for stem, parts in models.items() if _is_asked(name.file, stem, parts)}
    if len(asked) == 1:
        return next(iter(asked.values()))
    what = f"{len(asked)} models of {name.file!r}" if asked else f"no model {name.file!r}"
    problem = what if name.file else f"{len(models)} models in GGUF"
    names = ", ".join(f"{name.repository}:{_short(stem)}" for stem in sorted(asked or models)[:_MAX_NAMED])
    raise HubError(f"{name.repository} has {problem}: name one of them ({names})")


def _gguf_models(files: Collection[str]) -> Mapping[str, Sequence[str]]:
    """The files of each model by what their names begin with."""
    models: dict[str, list[str]] = {}
    for file in sorted(files):
        path = PurePosixPath(file)
        if path.suffix != SUFFIX or is_projector(path.name):
            continue
        split = SPLIT.fullmatch(path.name)
        stem = str(path.with_name(split["model"])) if split else file.removesuffix(SUFFIX)
        models.setdefault(stem, []).append(file)
    return models


def _is_asked(asked: str, stem: str, parts: Sequence[str]) -> bool:
    """Whether a name asks for a model: by a file, by the end of the file's name, or by nothing."""
    if asked.endswith(SUFFIX):
        return any(asked in (part, PurePosixPath(part).name) for part in parts)
    end, whole = asked.lower(), stem.lower()
    return not end or whole == end or (whole.endswith(end) and whole[-len(end) - 1] in _SEPARATORS)


def _short(stem: str) -> str:
    """The quantisation at the end of a name, if it is one that is told apart."""
    found = re.search(r"(?i)[-._]((?:UD-)?(?:I?Q\d\w*|BF16|F16|F32|MXFP4\w*))$", stem)
    return found[1] if found else f"{stem}{SUFFIX}"


def _without_weights(name: HubName, files: Collection[str]) -> str:
    if any(file.endswith((".bin", ".pt", ".pth")) for file in files):
        return (
            f"{name.repository} has only pickled weights, and loading a pickle can run any code; "
            "look for a version in safetensors or GGUF"
        )
    return f"{name.repository} has no weights in safetensors or GGUF"

"""The rules of `manifest.json`: fields, types, and what has to hold between them."""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from functions.contract.manifest import FORMAT, PAGE_NBYTES

FUNCTION_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""What OpenFaaS takes as a function's name: a DNS label."""

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_experts",
    "num_experts_per_tok",
    "experts_per_function",
    "layers_per_function",
    "expert_nbytes",
)
_MANIFEST_FIELDS: Mapping[str, type] = {
    "format": int,
    "name": str,
    "model_type": str,
    "fingerprint": str,
    "dtype": str,
    "dense_dtype": str,
    "expert_dtype": str,
    **dict.fromkeys(_SIZES, int),
    "moe_layers": list,
    "dense": dict,
    "files": dict,
    "blocks": list,
}
_DENSE_FIELDS: Mapping[str, type] = {"file": str, "nbytes": int, "sha256": str}
_BLOCK_FIELDS: Mapping[str, type] = {**_DENSE_FIELDS, "function": str, "offset": int, "experts": dict}


def check_manifest(data: object) -> None:
    """Raise ValueError, saying what is wrong first, unless `data` is a manifest's JSON."""
    manifest = _fields(data, _MANIFEST_FIELDS, "the manifest")
    _hold(manifest["format"] == FORMAT, f"format {manifest['format']} is not known, only {FORMAT}")
    _check_model(manifest)
    _check_file(_fields(manifest["dense"], _DENSE_FIELDS, "dense"), "dense")
    for name, sha256 in manifest["files"].items():
        _check_file({"file": name, "nbytes": 0, "sha256": sha256}, f"files: {name}")
    for number, block in enumerate(manifest["blocks"]):
        where = f"block {number}"
        _check_block(_fields(block, _BLOCK_FIELDS, where), manifest["expert_nbytes"], where)
    _check_coverage(manifest)


def _check_model(manifest: Mapping[str, Any]) -> None:
    dtype = manifest["dtype"]
    _hold(dtype in ("f32", "bf16"), f"dtype is {dtype!r}, not f32 or bf16")
    for part in ("dense_dtype", "expert_dtype"):
        _hold(manifest[part] in (dtype, "int8"), f"{part} is {manifest[part]!r}, not {dtype} or int8")
    for size in _SIZES:
        _hold(manifest[size] >= 1, f"{size} is {manifest[size]}, not positive")
    _hold(manifest["expert_nbytes"] % PAGE_NBYTES == 0, f"expert_nbytes is no multiple of {PAGE_NBYTES}")
    _hold(_ascending(manifest["moe_layers"]), "moe_layers are not ascending layer numbers")


def _check_file(entry: Mapping[str, Any], where: str) -> None:
    parts = entry["file"].split("/")
    _hold(not {"", ".", ".."} & set(parts), f"{where}: {entry['file']!r} is not a file in the partition")
    _hold(entry["nbytes"] >= 0, f"{where}: nbytes is negative")
    checksum = entry["sha256"]
    is_checksum = isinstance(checksum, str) and re.fullmatch("[0-9a-f]{64}", checksum)
    _hold(bool(is_checksum), f"{where}: sha256 is not 64 hexadecimal digits")


def _check_block(block: Mapping[str, Any], expert_nbytes: int, where: str) -> None:
    _check_file(block, where)
    function, offset = block["function"], block["offset"]
    _hold(FUNCTION_NAME.fullmatch(function) is not None, f"{where}: {function!r} is not a function's name")
    _hold(
        offset > 0 and offset % PAGE_NBYTES == 0, f"{where}: offset {offset} is no multiple of {PAGE_NBYTES}"
    )
    _hold(
        all(layer.isdecimal() for layer in block["experts"]), f"{where}: experts has a key that is no layer"
    )
    _hold(_ascending([int(layer) for layer in block["experts"]]), f"{where}: its layers are not ascending")
    for layer, experts in block["experts"].items():
        _hold(
            isinstance(experts, list) and _ascending(experts),
            f"{where}: the experts of layer {layer} are not ascending numbers",
        )
    nbytes = offset + expert_nbytes * sum(len(experts) for experts in block["experts"].values())
    _hold(block["nbytes"] == nbytes, f"{where}: nbytes is {block['nbytes']}, its experts need {nbytes}")


def _check_coverage(manifest: Mapping[str, Any]) -> None:
    """Each expert of the model must be in exactly one block, each function in one place."""
    names = [block["function"] for block in manifest["blocks"]]
    _hold(len(set(names)) == len(names), "two blocks have the same function")
    found = sorted(_experts(manifest["blocks"]))
    for earlier, later in pairwise(found):
        _hold(earlier != later, f"expert {later[1]} of layer {later[0]} is in two blocks")
    wanted = {(layer, e) for layer in manifest["moe_layers"] for e in range(manifest["num_experts"])}
    for layer, expert in sorted(wanted ^ set(found)):
        problem = "is in no block" if (layer, expert) in wanted else "is not one of this model's"
        raise ValueError(f"expert {expert} of layer {layer} {problem}")


def _experts(blocks: list[Mapping[str, Any]]) -> Iterator[tuple[int, int]]:
    for block in blocks:
        for layer, experts in block["experts"].items():
            yield from ((int(layer), expert) for expert in experts)


def _fields(data: object, fields: Mapping[str, type], where: str) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"{where} is not a JSON object")
    for key, kind in fields.items():
        _hold(key in data, f"{where} has no {key!r}")
        # type() and not isinstance(): JSON's true is an int to the latter.
        _hold(type(data[key]) is kind, f"{where}: {key} is {data[key]!r}, not {kind.__name__}")
    unknown = sorted(data.keys() - fields.keys())
    _hold(not unknown, f"{where} has unknown fields: {', '.join(unknown)}")
    return data


def _ascending(numbers: list[Any]) -> bool:
    """Whether these are one or more whole numbers, each larger than the one before."""
    if not numbers or any(type(number) is not int or number < 0 for number in numbers):
        return False
    return all(a < b for a, b in pairwise(numbers))


def _hold(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)

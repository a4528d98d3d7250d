"""Describes the router of a layer."""

from control_plane.architecture.programs.dense_tensors import DenseTensors
from control_plane.architecture.programs.numbers import ROUTER_SCALES, number
from control_plane.errors import UnsupportedModel
from control_plane.partition.model.program import RouterEntry, Scores


def router_of(
    tensors: DenseTensors, block: str, num_experts: int, hidden_size: int, scores: Scores
) -> RouterEntry:
    """The router in the module `block`, beside its experts. Its tensors are found by their shapes.

    Raises UnsupportedModel if it is not one matrix.
    """
    weight = tensors.take_only(f"{block}.", (num_experts, hidden_size), may_be_f32=True)
    if weight is None:
        raise UnsupportedModel(f"{block} has no router that is one matrix")
    module = weight.rpartition(".")[0]
    tensors.take_bias(module, may_be_f32=True)
    corrections = (
        tensors.take_only(f"{block}.", shape, may_be_f32=True) for shape in ((num_experts,), (1, num_experts))
    )
    # The numbers are those of the block, of the linear layer in it, or of a module between them.
    inner = [name for name in (module.rpartition(".")[0], module) if name.startswith(f"{block}.")]
    owners = [tensors.module(name) for name in (block, *inner)]
    return RouterEntry(
        module=module,
        scores=scores,
        normalised=number(owners, ("norm_topk_prob",), True),
        scale=number(owners, ROUTER_SCALES, 1.0),
        correction=next((name for name in corrections if name), None),
        groups=number(owners, ("num_group", "n_group"), 1),
        chosen_groups=number(owners, ("topk_group",), 1),
    )

"""`faasmoe pull` and `inspect`: get a model from a hub, and see what it takes before it is partitioned."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from control_plane.cli.options import json_option
from control_plane.cli.progress import progress_bar
from control_plane.signals import sigterm_exits

if TYPE_CHECKING:
    from control_plane.hub.models import LocalModel


@click.command()
@click.argument("model", metavar="MODEL")
def pull(model: str) -> None:
    """Download MODEL from the hub, and print where it is.

    MODEL is an id: org/name, or org/name@REVISION for another branch, tag or commit than main. If the model
    has several files in GGUF, org/name:Q4_K_M names one by its quantisation, or org/name:FILE.gguf.

    Only what a partition is made of is downloaded: weights in safetensors or GGUF, config and tokenizer;
    never code or pickles. It goes into the cache that Hugging Face's programs share ($HF_HUB_CACHE, by
    default ~/.cache/huggingface/hub). A download that was interrupted goes on where it stopped. Gated and
    private models need a token, from `hf auth login` or in $HF_TOKEN. On a machine without a network, name
    the folder of a copy in place of an id.

    \b
      faasmoe inspect org/name                  # what it takes, before it is downloaded
      faasmoe pull org/name
      faasmoe up org/name
    """
    from control_plane.hub.models import pulled

    with sigterm_exits(), progress_bar("downloading") as progress:
        local = pulled(model, progress)
    click.echo(local.path)


@click.command()
@click.argument("model", metavar="MODEL")
@json_option
def inspect(model: str, as_json: bool) -> None:
    """Show what MODEL is and what it takes to serve it here, before anything is written.

    MODEL is the folder of a checkpoint, a GGUF file, or the id of a model on the hub, of which only the
    config and the headers of the weights are fetched.

    Shows the family and its experts, the types of the weights, how the model would be served, the size of its
    partition with each --dtype of `faasmoe partition`, and, by memory budget, how many experts fit and what
    bounds the speed. That is an estimate, from bandwidths that are measured meanwhile, for about two seconds.
    A model is refused as `partition` would, as far as config and tensors tell; the tokenizer is not read.

    \b
      faasmoe inspect org/name:Q4_K_M
      faasmoe inspect MODEL_DIR --json
    """
    from control_plane.hub.models import opened
    from control_plane.inspection.measurement import measured
    from control_plane.inspection.report import report
    from control_plane.inspection.text import lines
    from control_plane.partition.model.inspection import inspect as architecture_of

    with sigterm_exits(), opened(model) as (checkpoint, name, weights):
        architecture = architecture_of(checkpoint)
        found = report(checkpoint, name, architecture, measured(weights))
    for line in [json.dumps(found.to_json(), indent=2)] if as_json else lines(found):
        click.echo(line)


def local_model(text: str, takes_partition: bool = False) -> "LocalModel":
    """A model by its path or, if nothing has that path, by its id on the hub, which is downloaded.

    Where a partition is as good, one that `faasmoe up` has kept of that model is taken.
    Raises ConfigError for a text that is neither, HubError, StorageFull or PartitionError.
    """
    from control_plane.hub.models import LocalModel, pulled

    if Path(text).exists():
        return LocalModel(Path(text))
    with progress_bar("downloading") as progress:
        return pulled(text, progress, takes_partition=takes_partition)

"""`faasmoe partition` and `verify`: make a partition from a checkpoint, and check one."""

from pathlib import Path

import click

from control_plane.cli.models import local_model
from control_plane.cli.options import COUNT, FILE, FOLDER, other_option
from control_plane.cli.progress import progress_bar
from control_plane.partition.recipes import DENSE_DTYPES, DTYPES
from control_plane.signals import sigterm_exits


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("out_dir", type=click.Path(path_type=Path))
@click.option(
    "--experts-per-function",
    type=COUNT,
    metavar="N",
    help="Experts of each layer in one function.  [default: all]",
)
@click.option(
    "--layers-per-function",
    metavar="N|all",
    help="MoE layers in one function.  [default: 1 with --experts-per-function]",
)
@click.option(
    "--max-functions",
    type=COUNT,
    metavar="N",
    help="Most functions; the model is cut as finely as that allows. Excludes the two options above.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="auto",
    show_default=True,
    help="Type of the weights; auto keeps the checkpoint's; int8 and int4 quantise the routed experts.",
)
@click.option(
    "--dense-dtype",
    type=click.Choice(DENSE_DTYPES),
    default="auto",
    show_default=True,
    help="Type of the dense part's weights; auto keeps the checkpoint's; int8 and int4 quantise attention, "
    "shared experts and head (int4 keeps down projections and the head at 8 bits).",
)
@click.option("--name", help="Name of the model, and prefix of its functions' names.  [default: the model's]")
@click.option(
    "--profile",
    "profile_file",
    type=FILE,
    metavar="FILE",
    help="File that `faasmoe profile` wrote: experts that are used together are packed into the same "
    "functions, and weights of large inputs are quantised with more care.  "
    "[default: experts stay in their order]",
)
@click.option(
    "--update",
    is_flag=True,
    help="Only bring the config, the tokenizer's files and the chat templates in OUT_DIR up to date with "
    "MODEL. The weights stay as they are. Excludes all other options.",
)
@click.pass_context
def partition(
    context: click.Context,
    model: str,
    out_dir: Path,
    experts_per_function: int | None,
    layers_per_function: str | None,
    max_functions: int | None,
    dtype: str,
    dense_dtype: str,
    name: str | None,
    profile_file: Path | None,
    update: bool,
) -> None:
    """Split MODEL for serving.

    The new folder OUT_DIR gets a dense part and blocks of experts. MODEL is a folder with config.json,
    safetensors files and the tokenizer, as transformers saves them, or a model in GGUF, or the id of a model
    on the hub, which is downloaded first, as `faasmoe pull` does. By default a function has all
    experts of one layer, or of as many layers as keep the number of functions within 15, which every edition
    of OpenFaaS can deploy. With --profile, the default is the finest split within 15.

    \b
      faasmoe partition MODEL_DIR OUT_DIR
      faasmoe partition org/name OUT_DIR --dtype int8 --max-functions 60
      faasmoe partition MODEL_DIR OUT_DIR --update
    """
    from control_plane.partition import commands, partitioner
    from control_plane.partition.checkpoint.reader import Checkpoint
    from control_plane.partition.companions import update_companions
    from control_plane.partition.model.inspection import inspect
    from control_plane.partition.profile import Profile

    if update:
        if other := other_option(context, "update"):
            raise click.UsageError(f"--update leaves the weights as they are: {other} cannot count")
        for name in update_companions(local_model(model).path, out_dir):
            click.echo(f"updated {out_dir / name}")
        return
    local = local_model(model)
    checkpoint = Checkpoint.open(local.path.absolute())
    architecture = inspect(checkpoint)
    granularity = commands.choose_granularity(
        architecture, experts_per_function, layers_per_function, max_functions
    )
    profile = None if profile_file is None else Profile.load(profile_file)
    with sigterm_exits(), progress_bar("partitioning") as progress:
        manifest = partitioner.partition(
            checkpoint,
            out_dir,
            architecture=architecture,
            granularity=granularity,
            dtype=dtype,
            dense_dtype=dense_dtype,
            name=name or local.name,
            profile=profile,
            progress=progress,
        )
    for line in commands.summary(manifest, out_dir):
        click.echo(line)


@click.command()
@click.argument("partition", type=FOLDER)
def verify(partition: Path) -> None:
    """Compare every file in the PARTITION folder with its checksum."""
    from control_plane.partition.manifest import Manifest

    manifest = Manifest.load(partition)
    manifest.verify(partition)
    click.echo(
        f"{partition} is whole: {len(manifest.blocks)} blocks, fingerprint {manifest.fingerprint[:12]}"
    )

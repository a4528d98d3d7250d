"""`faasmoe partition`, `verify` and `stack`: from a checkpoint to what is deployed."""

import os
import sys
from pathlib import Path

import click

from control_plane.cli.options import COUNT, DEFAULT_GATEWAY, PARTITION, image_prefix_option
from control_plane.cli.signals import sigterm_exits


@click.command()
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.argument("out_dir", type=click.Path(path_type=Path))
@click.option("--experts-per-function", type=COUNT, metavar="N", help="Experts of a layer in one function.")
@click.option("--layers-per-function", metavar="N|all", help="MoE layers in one function.  [default: 1]")
@click.option(
    "--max-functions",
    type=COUNT,
    metavar="N",
    help="Take the finest granularity with at most N functions.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "f32", "bf16", "int8"]),
    default="auto",
    show_default=True,
    help="Of the weights: auto keeps the checkpoint's; int8 quantises the routed experts.",
)
@click.option(
    "--dense-dtype",
    type=click.Choice(["auto", "int8"]),
    default="auto",
    show_default=True,
    help="Of the dense part: auto leaves it as it is; int8 quantises attention, shared experts and head.",
)
@click.option(
    "--name", help="Name of the model, which its functions' names begin with.  [default: the folder's]"
)
@click.option(
    "--profile",
    "profile_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Pack experts that are used together, as `faasmoe profile` has recorded, into the same functions.",
)
def partition(
    model_dir: Path,
    out_dir: Path,
    experts_per_function: int | None,
    layers_per_function: str | None,
    max_functions: int | None,
    dtype: str,
    dense_dtype: str,
    name: str | None,
    profile_file: Path | None,
) -> None:
    """Cut the checkpoint in MODEL_DIR into a dense part and expert blocks in OUT_DIR.

    MODEL_DIR holds config.json, safetensors and the tokenizer, as transformers saves them. Without options
    a function has all experts of a layer, or of as many layers as it takes for every edition of OpenFaaS to
    deploy them (15 functions); with a profile, it is the finest granularity within those 15.
    """
    from control_plane.partition import commands, partitioner
    from control_plane.partition.profile import Profile

    granularity = commands.choose_granularity(
        model_dir, experts_per_function, layers_per_function, max_functions
    )
    profile = None if profile_file is None else Profile.load(profile_file)
    # Without a terminal the bar would be one more line above that of an error.
    hidden = not sys.stderr.isatty()
    with (
        sigterm_exits(),
        click.progressbar(length=1, label="partitioning", file=sys.stderr, hidden=hidden) as bar,
    ):

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        manifest = partitioner.partition(
            model_dir,
            out_dir,
            granularity=granularity,
            dtype=dtype,
            dense_dtype=dense_dtype,
            name=name,
            profile=profile,
            progress=progress,
        )
    for line in commands.summary(manifest, out_dir):
        click.echo(line)


@click.command()
@click.argument("partition", type=PARTITION)
def verify(partition: Path) -> None:
    """Compare every file of the PARTITION folder with its checksum."""
    from control_plane.partition.manifest import Manifest

    manifest = Manifest.load(partition)
    manifest.verify(partition)
    click.echo(
        f"{partition} is whole: {len(manifest.blocks)} blocks, fingerprint {manifest.fingerprint[:12]}"
    )


@click.command()
@click.argument("partition", type=PARTITION)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write.  [default: stdout]",
)
@click.option("--gateway", default=DEFAULT_GATEWAY, show_default=True, help="Gateway to name in the file.")
@image_prefix_option
def stack(partition: Path, output: Path | None, gateway: str, image_prefix: str) -> None:
    """Write the stack.yml with which faas-cli builds and deploys the PARTITION folder.

    With -o, what faas-cli needs beside it is written, too: template/faasmoe-expert, whose Dockerfile has one
    layer per expert block, and functions/, the sources that run in the image.
    """
    from control_plane.partition.image import write_template
    from control_plane.partition.manifest import Manifest
    from control_plane.partition.stack import stack_yaml

    manifest = Manifest.load(partition)
    folder = output.absolute().parent if output else Path.cwd()
    text = stack_yaml(manifest, gateway, f"./{os.path.relpath(partition, folder)}", image_prefix)
    if output is None:
        click.echo(text, nl=False)
        return
    write_template(manifest, folder)
    with click.open_file(str(output), "w", atomic=True) as file:
        file.write(text)

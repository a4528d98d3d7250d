"""`faasmoe partition`, `verify` and `stack`: from a checkpoint to what is deployed."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from control_plane.cli.options import (
    COUNT,
    DEFAULT_GATEWAY,
    PARTITION,
    Listed,
    idle_exit_option,
    image_prefix_option,
    whole_seconds,
)
from control_plane.signals import sigterm_exits


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
@idle_exit_option
def stack(
    partition: Path, output: Path | None, gateway: str, image_prefix: str, idle_exit: float | None
) -> None:
    """Write the stack.yml with which faas-cli builds and deploys the PARTITION folder.

    With -o, what faas-cli needs beside it is written, too: template/faasmoe-expert, whose Dockerfile has one
    layer per expert block, and functions/, the sources that run in the image.
    """
    from control_plane.deployment.image.template import write_template
    from control_plane.deployment.stack import stack_yaml
    from control_plane.partition.manifest import Manifest

    manifest = Manifest.load(partition)
    folder = output.absolute().parent if output else Path.cwd()
    handler = f"./{os.path.relpath(partition, folder)}"
    text = stack_yaml(manifest, gateway, handler, image_prefix, whole_seconds(idle_exit))
    if output is None:
        click.echo(text, nl=False)
        return
    write_template(manifest, folder)
    with click.open_file(str(output), "w", atomic=True) as file:
        file.write(text)


@click.command()
@click.argument("partition", type=PARTITION)
@click.option(
    "--base",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="What it stands on: a root file system with Python, as an OCI layout (a folder or a tar archive; "
    "`skopeo copy docker://python:3.11-slim oci:base`) or as a plain tar archive.",
)
@click.option("--tag", metavar="NAME", help="Its name.  [default: the one that `deploy` and stack.yml have]")
@click.option(
    "--architecture",
    "architectures",
    type=Listed(str),
    default=None,
    help="amd64, arm64, or both with a comma between them.  [default: this machine's]",
)
@click.option(
    "--wheels",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the wheels of numpy and httptools.  [default: pip downloads them]",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    default="image.tar",
    show_default=True,
    help="File to write.",
)
@image_prefix_option
def image(
    partition: Path,
    base: Path,
    tag: str | None,
    architectures: Sequence[str] | None,
    wheels: Path | None,
    output: Path,
    image_prefix: str,
) -> None:
    """Write the image of the PARTITION folder's functions, without a container daemon.

    It is an OCI image layout in a tar archive: for `ctr images import`, or `skopeo copy oci-archive:image.tar
    docker://...`. A layer for each expert block, so that a changed one moves no other; the same input gives
    the same digest. For another architecture than this machine's, functions compute with NumPy.
    """
    from control_plane.deployment.image.builder import ImageSpec, write_image
    from control_plane.deployment.image.contents import built_kernel
    from control_plane.deployment.image.packages import own_architecture
    from control_plane.partition.manifest import Manifest

    manifest = Manifest.load(partition)
    own, kernel = own_architecture(), built_kernel()
    if own is None and not architectures:
        raise click.UsageError("no images are made for this machine's architecture: give --architecture")
    spec = ImageSpec(
        partition=partition,
        base=base,
        architectures=architectures or [own or ""],
        tag=tag or image_prefix + manifest.image,
        wheels=wheels,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        kernels={own: kernel} if own and kernel else {},
    )
    digest = write_image(spec, output, click.echo)
    click.echo(f"{output}: {spec.tag}, {digest}")

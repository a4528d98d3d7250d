"""`faasmoe deploy`, `stack` and `image`: bring a partition's functions to OpenFaaS gateways."""

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import click

from control_plane.cli.options import (
    DEFAULT_GATEWAY,
    FOLDER,
    OUTPUT_FILE,
    Listed,
    function_secret_option,
    gateway_options,
    idle_exit_option,
    image_prefix_option,
    whole_seconds,
)
from control_plane.faas.gateway_access import GatewayAccess, default_secret_file, make_function_secret

_open_functions_option = click.option(
    "--open-functions",
    is_flag=True,
    help="Deploy functions without the secret. They answer everybody who reaches them.",
)


@click.command()
@click.argument("partition", type=FOLDER)
@gateway_options
@image_prefix_option
@idle_exit_option
@function_secret_option
@_open_functions_option
@click.option(
    "--prune", is_flag=True, help="Remove functions of this model that the partition does not have."
)
@click.option("--roll-back", is_flag=True, help="Undo all changes if one fails.")
def deploy(
    partition: Path,
    gateways: Sequence[GatewayAccess],
    image_prefix: str,
    idle_exit: float | None,
    function_secret_file: Path | None,
    open_functions: bool,
    prune: bool,
    roll_back: bool,
) -> None:
    """Deploy the functions in the PARTITION folder to gateways.

    Several gateways share the functions. Run it again to update functions that have changed. A deployed
    function stays on its gateway. The gateways store the functions' secret, which `faasmoe serve` needs, too.

    \b
      faasmoe deploy OUT_DIR --gateway http://box:8080 --gateway-password-file password
      faasmoe deploy OUT_DIR --gateway http://one:8080 --gateway http://two:8080
    """
    from control_plane.deployment.deploy import deploy_all
    from control_plane.faas.client import Gateway
    from control_plane.partition.manifest import Manifest

    async def run() -> None:
        manifest = Manifest.load(partition)
        secret = None
        if not open_functions:
            secret = make_function_secret(function_secret_file or default_secret_file())
        async with AsyncExitStack() as stack:
            connected = [await stack.enter_async_context(Gateway.connect(*each)) for each in gateways]
            changes = deploy_all(
                manifest,
                connected,
                image_prefix,
                idle_exit=whole_seconds(idle_exit),
                secret=secret,
                open_to_all=open_functions,
                prune=prune,
                roll_back=roll_back,
            )
            async for change in changes:
                where = f" on {change.gateway}" if len(connected) > 1 else ""
                click.echo(f"{change.done} {change.function}{where}")

    asyncio.run(run())


@click.command()
@click.argument("partition", type=FOLDER)
@click.option("--output", "-o", type=OUTPUT_FILE, help="File to write.  [default: standard output]")
@click.option(
    "--gateway", default=DEFAULT_GATEWAY, show_default=True, help="Address of the gateway in the file."
)
@image_prefix_option
@idle_exit_option
@_open_functions_option
def stack(
    partition: Path,
    output: Path | None,
    gateway: str,
    image_prefix: str,
    idle_exit: float | None,
    open_functions: bool,
) -> None:
    """Write the stack.yml of the PARTITION folder for faas-cli.

    faas-cli builds and deploys the functions with it. With -o, also write two folders for faas-cli next to
    the file: template/faasmoe-expert, whose Dockerfile has one layer per expert block, and functions/, with
    the sources that run in the image.

    The functions need the secret faasmoe-functions, which faas-cli stores from the file that `faasmoe serve`
    reads.

    \b
      faasmoe stack OUT_DIR -o stack.yml --image-prefix REGISTRY/
      head -c 32 /dev/urandom | base64 > function-secret
      faas-cli secret create faasmoe-functions --from-file=function-secret
      faas-cli up -f stack.yml
      faasmoe serve OUT_DIR --function-secret-file function-secret
    """
    from control_plane.deployment.image.template import write_template
    from control_plane.deployment.stack import FunctionCallers, stack_yaml
    from control_plane.partition.manifest import Manifest

    manifest = Manifest.load(partition)
    folder = output.absolute().parent if output else Path.cwd()
    handler = f"./{os.path.relpath(partition, folder)}"
    callers = FunctionCallers.ANYBODY if open_functions else FunctionCallers.WITH_SECRET
    text = stack_yaml(manifest, gateway, handler, image_prefix, whole_seconds(idle_exit), callers)
    if output is None:
        click.echo(text, nl=False)
        return
    write_template(manifest, folder)
    with click.open_file(str(output), "w", atomic=True) as file:
        file.write(text)


@click.command()
@click.argument("partition", type=FOLDER)
@click.option(
    "--base",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="Root file system with Python, below the layers of the image: an OCI layout (a folder or a tar "
    "archive; `skopeo copy docker://python:3.11-slim oci:base` makes one) or a plain tar archive.",
)
@click.option("--tag", metavar="NAME", help="Name of the image.  [default: the one in stack.yml]")
@click.option(
    "--architecture",
    "architectures",
    type=Listed(str),
    default=None,
    help="Architectures with commas between them: amd64, arm64.  [default: this machine's]",
)
@click.option(
    "--wheels",
    type=FOLDER,
    help="Folder with wheels of numpy, httptools and xxhash.  [default: pip downloads them]",
)
@click.option(
    "--output",
    "-o",
    type=OUTPUT_FILE,
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
    """Write the container image of the PARTITION folder's functions.

    This needs no container daemon. The file is an OCI image layout in a tar archive, for `ctr images import`
    or `skopeo copy oci-archive:image.tar docker://...`. Each expert block is one layer, so a changed block
    leaves the other layers unchanged. The same input gives the same digest. For an architecture other than
    this machine's, the code in C is compiled if there is a compiler for it (Debian's gcc-aarch64-linux-gnu,
    gcc-x86-64-linux-gnu); if not, functions compute with NumPy, which is slow.

    \b
      skopeo copy docker://python:3.11-slim oci:base
      faasmoe image OUT_DIR --base base --image-prefix REGISTRY/
    """
    from control_plane.deployment.image.builder import ImageSpec, write_image
    from control_plane.deployment.image.packages import own_architecture
    from control_plane.partition.manifest import Manifest

    manifest = Manifest.load(partition)
    own = own_architecture()
    if own is None and not architectures:
        raise click.UsageError("no images are made for this machine's architecture: give --architecture")
    spec = ImageSpec(
        partition=partition,
        base=base,
        architectures=architectures or [own or ""],
        tag=tag or image_prefix + manifest.image,
        wheels=wheels,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
    )
    digest = write_image(spec, output, click.echo)
    click.echo(f"{output}: {spec.tag}, {digest}")

"""The `faasmoe` command: parse, call, print. What can go wrong is one clear line, never a traceback.

Each command imports what it runs when it runs: torch alone takes longer to import than `--help` may.
"""

import os
from typing import Any

import click

from control_plane.cli.bench import bench
from control_plane.cli.partition import image, partition, stack, verify
from control_plane.cli.profile import profile
from control_plane.cli.prompt import prompt, status
from control_plane.cli.servers import deploy, gateway, serve, up
from control_plane.cli.tenants import tenants
from control_plane.cli.usage import usage
from control_plane.errors import FaaSMoEError


class _Group(click.Group):
    """Turns the domain's errors into one line and exit code 1; click's own usage errors exit with 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FaaSMoEError as error:
            raise click.ClickException(" ".join(str(error).split())) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="faasmoe")
def main() -> None:
    """Serve a Mixture-of-Experts model with its routed experts as OpenFaaS functions.

    \b
    Try it at once, with everything in one process:
      faasmoe up models/demo
      faasmoe prompt "Write a function that sorts a list"

    \b
    On a box with faasd, or any OpenFaaS gateway:
      faasmoe partition MODEL_DIR OUT_DIR
      faasmoe stack OUT_DIR -o stack.yml --image-prefix REGISTRY/
      faas-cli up -f stack.yml
      faasmoe tenants add NAME
      faasmoe serve OUT_DIR --gateway URL --gateway-password-file FILE
    """
    # torch's idle threads would spin, on the cores that the expert functions need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


for command in (
    partition,
    profile,
    verify,
    stack,
    image,
    gateway,
    deploy,
    serve,
    up,
    tenants,
    usage,
    prompt,
    status,
    bench,
):
    main.add_command(command)

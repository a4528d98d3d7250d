"""The `faasmoe` command, with all its subcommands.

Each command imports what it needs when it runs: importing all of it would make even `--help` slow.
"""

import os
from typing import Any

import click

from control_plane.cli.bench import bench
from control_plane.cli.deployment import deploy, image, stack
from control_plane.cli.models import inspect, pull
from control_plane.cli.partition import partition, verify
from control_plane.cli.profile import profile
from control_plane.cli.prompt import prompt
from control_plane.cli.quality import quality
from control_plane.cli.servers import gateway, serve, up
from control_plane.cli.status import status
from control_plane.cli.tenancy.tenants import tenants
from control_plane.cli.tenancy.usage import usage
from control_plane.errors import FaaSMoEError


class _Group(click.Group):
    """Prints FaaSMoE's errors as one line and exits with 1. Click's own usage errors exit with 2."""

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
    Try it on this machine, with one command:
      faasmoe up models/demo
      faasmoe prompt "Write a function that sorts a list"

    \b
    See what a model of the hub takes, and serve it:
      faasmoe inspect org/name
      faasmoe up org/name

    \b
    Run it on a machine with faasd, or with any OpenFaaS gateway:
      faasmoe partition MODEL_DIR OUT_DIR
      faasmoe stack OUT_DIR -o stack.yml --image-prefix REGISTRY/
      faas-cli up -f stack.yml
      faasmoe tenants add NAME
      faasmoe serve OUT_DIR --gateway URL --gateway-password-file FILE
    """
    # OpenMP's idle threads would otherwise spin on cores that the expert functions need. torch reads this
    # variable when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


for command in (
    inspect,
    pull,
    partition,
    profile,
    quality,
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

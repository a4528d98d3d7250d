"""The `faasmoe` command: parse, call, print. What can go wrong is one clear line, never a traceback.

Each command imports what it runs when it runs: torch alone takes longer to import than `--help` may.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from control_plane.errors import FaaSMoEError

DEFAULT_GATEWAY = "http://127.0.0.1:8080"
DEFAULT_SERVER = "http://127.0.0.1:8000"

PARTITION = click.Path(exists=True, file_okay=False, path_type=Path)
PORT = click.IntRange(0, 65535)
Command = TypeVar("Command", bound=Callable[..., Any])


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
      faasmoe prompt --tenant me "Write a function that sorts a list"

    \b
    On a box with faasd, or any OpenFaaS gateway:
      faasmoe partition MODEL_DIR OUT_DIR
      faasmoe deploy OUT_DIR --gateway http://127.0.0.1:8080
      faasmoe serve OUT_DIR --gateway http://127.0.0.1:8080
    """
    # torch's idle threads would spin, on the cores that the expert functions need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def gateway_options(command: Command) -> Command:
    """Where the gateway is, and who we are there."""
    options = [
        click.option(
            "--gateway",
            "gateway_url",
            default=DEFAULT_GATEWAY,
            envvar="OPENFAAS_URL",
            show_default=True,
            show_envvar=True,
            help="Address of the OpenFaaS gateway.",
        ),
        click.option(
            "--gateway-user", default="admin", show_default=True, help="User for the gateway's basic auth."
        ),
        click.option(
            "--gateway-password-file",
            type=click.Path(dir_okay=False, path_type=Path),
            help="File with the gateway's password; without it, calls go without basic auth.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def serve_options(command: Command) -> Command:
    """The control plane's own settings; None leaves them to the config file or the default."""
    options = [
        click.option(
            "--config",
            "config_file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="YAML file with settings; options given here override it.",
        ),
        click.option("--host", help="Address to listen on.  [default: 127.0.0.1]"),
        click.option("--port", type=int, help="Port to listen on.  [default: 8000]"),
        click.option("--kv-cache-mb", type=int, help="Most memory for keys and values.  [default: 512]"),
        click.option(
            "--threads", type=int, help="Compute threads of the dense part.  [default: by the model's size]"
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.argument("out_dir", type=click.Path(path_type=Path))
@click.option("--experts-per-function", type=int, metavar="N", help="Experts of a layer in one function.")
@click.option("--layers-per-function", metavar="N|all", help="MoE layers in one function.  [default: 1]")
@click.option(
    "--max-functions", type=int, metavar="N", help="Take the finest granularity with at most N functions."
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "f32", "bf16", "int8"]),
    default="auto",
    show_default=True,
    help="Of the weights: auto keeps the checkpoint's; int8 quantises the routed experts.",
)
@click.option(
    "--name", help="Name of the model, which its functions' names begin with.  [default: the folder's]"
)
def partition(
    model_dir: Path,
    out_dir: Path,
    experts_per_function: int | None,
    layers_per_function: str | None,
    max_functions: int | None,
    dtype: str,
    name: str | None,
) -> None:
    """Cut the checkpoint in MODEL_DIR into a dense part and expert blocks in OUT_DIR.

    MODEL_DIR holds config.json, safetensors and the tokenizer, as transformers saves them. Without options
    the granularity is the finest that every edition of OpenFaaS can deploy (15 functions).
    """
    from control_plane.partition import commands, partitioner

    granularity = commands.choose_granularity(
        model_dir, experts_per_function, layers_per_function, max_functions
    )
    # Without a terminal the bar would be one more line above that of an error.
    hidden = not sys.stderr.isatty()
    with (
        _sigterm_exits(),
        click.progressbar(length=1, label="partitioning", file=sys.stderr, hidden=hidden) as bar,
    ):

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        manifest = partitioner.partition(
            model_dir, out_dir, granularity=granularity, dtype=dtype, name=name, progress=progress
        )
    for line in commands.summary(manifest, out_dir):
        click.echo(line)


@main.command()
@click.argument("partition", type=PARTITION)
def verify(partition: Path) -> None:
    """Compare every file of the PARTITION folder with its checksum."""
    from control_plane.partition.manifest import Manifest

    manifest = Manifest.load(partition)
    manifest.verify(partition)
    click.echo(
        f"{partition} is whole: {len(manifest.blocks)} blocks, fingerprint {manifest.fingerprint[:12]}"
    )


@main.command()
@click.argument("partition", type=PARTITION)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write.  [default: stdout]",
)
@click.option("--gateway", default=DEFAULT_GATEWAY, show_default=True, help="Gateway to name in the file.")
def stack(partition: Path, output: Path | None, gateway: str) -> None:
    """Write the stack.yml with which faas-cli builds and deploys the PARTITION folder.

    With -o, what faas-cli needs beside it is written, too: template/faasmoe-expert, whose Dockerfile has one
    layer per expert block, and functions/, the sources that run in the image.
    """
    from control_plane.partition.image import write_template
    from control_plane.partition.manifest import Manifest
    from control_plane.partition.stack import stack_yaml

    manifest = Manifest.load(partition)
    folder = output.absolute().parent if output else Path.cwd()
    text = stack_yaml(manifest, gateway, f"./{os.path.relpath(partition, folder)}")
    if output is None:
        click.echo(text, nl=False)
        return
    write_template(manifest, folder)
    with click.open_file(str(output), "w", atomic=True) as file:
        file.write(text)


@main.command()
@click.argument("partition", type=PARTITION)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=PORT, default=8080, show_default=True, help="Port to listen on; 0 takes a free one."
)
@click.option("--user", default="admin", show_default=True, help="User for basic auth.")
@click.option(
    "--password-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with the password that /system calls need; without it they need none.",
)
@click.option(
    "--idle-after",
    type=click.FloatRange(0),
    default=900.0,
    show_default=True,
    help="Seconds without a call before a function goes to zero.",
)
def gateway(
    partition: Path, host: str, port: int, user: str, password_file: Path | None, idle_after: float
) -> None:
    """Run the embedded gateway: the OpenFaaS API over functions of the PARTITION folder, as processes.

    faas-cli speaks to it as to any other gateway. It has one image, that of this partition. Functions
    live as long as the gateway does.
    """
    from control_plane.config import read_credentials
    from control_plane.faas.embedded import embedded_gateway

    credentials = read_credentials(user, password_file)
    _serve("gateway", embedded_gateway(partition, host, port, credentials, idle_after))


@main.command()
@click.argument("partition", type=PARTITION)
@gateway_options
def deploy(partition: Path, gateway_url: str, gateway_user: str, gateway_password_file: Path | None) -> None:
    """Deploy the functions of the PARTITION folder to a gateway; again, and it updates them."""
    from control_plane.config import parse_url, read_credentials
    from control_plane.deployment import deploy_all
    from control_plane.faas.gateway import Gateway
    from control_plane.partition.manifest import Manifest

    async def run() -> None:
        manifest = Manifest.load(partition)
        credentials = read_credentials(gateway_user, gateway_password_file)
        async with Gateway.connect(parse_url(gateway_url), credentials) as client:
            async for name in deploy_all(manifest, client):
                click.echo(f"deployed {name}")

    asyncio.run(run())


@main.command()
@click.argument("partition", type=PARTITION)
@gateway_options
@serve_options
def serve(
    partition: Path,
    gateway_url: str,
    gateway_user: str,
    gateway_password_file: Path | None,
    config_file: Path | None,
    **overrides: Any,
) -> None:
    """Serve the model of the PARTITION folder, whose functions are deployed on a gateway.

    The API is OpenAI's, on http://HOST:PORT/v1.
    """
    from control_plane.app import control_plane
    from control_plane.config import ServeConfig, parse_url, read_credentials

    config = ServeConfig.load(config_file, overrides)
    credentials = read_credentials(gateway_user, gateway_password_file)
    _serve("serving", control_plane(partition, config, parse_url(gateway_url), credentials))


@main.command()
@click.argument("model", type=PARTITION)
@serve_options
@click.option(
    "--gateway-port",
    type=PORT,
    default=8080,
    show_default=True,
    help="Port of the gateway; 0 takes a free one.",
)
def up(model: Path, config_file: Path | None, gateway_port: int, **overrides: Any) -> None:
    """Run everything for MODEL, until Ctrl-C: gateway, functions and control plane.

    MODEL is a partition, or a checkpoint, which is then partitioned beside it into MODEL.faasmoe.
    """
    from control_plane.config import ServeConfig
    from control_plane.up import partition_of, running

    config = ServeConfig.load(config_file, overrides)
    with _sigterm_exits():
        folder = partition_of(model, click.echo)
    _serve("serving", running(folder, config, gateway_port, click.echo))


@main.command()
@click.argument("text")
@click.option("--tenant", required=True, help="Who is asking.")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=64, show_default=True, help="Tokens to generate."
)
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="0 always takes the likeliest.",
)
@click.option("--seed", type=click.IntRange(0), help="Makes a temperature above 0 repeatable.")
@click.option("--raw", is_flag=True, help="Continue TEXT as it is, without the chat template.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of streaming."
)
@click.option(
    "--server", default=DEFAULT_SERVER, envvar="FAASMOE_URL", show_default=True, show_envvar=True,
    help="Address of the control plane.",
)  # fmt: skip
def prompt(
    text: str,
    tenant: str,
    max_tokens: int,
    temperature: float,
    seed: int | None,
    raw: bool,
    as_json: bool,
    server: str,
) -> None:
    """Ask the model, and print its answer as it comes. TEXT "-" is read from standard input."""
    from control_plane.client import Client, Question
    from control_plane.config import parse_url

    question = Question(_text(text), tenant, max_tokens, temperature, seed, raw)

    async def run() -> None:
        async with Client.connect(parse_url(server)) as client:
            answer = await client.ask(question, on_text=None if as_json else partial(click.echo, nl=False))
            click.echo(json.dumps(answer.to_json(), ensure_ascii=False) if as_json else "")

    asyncio.run(run())


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything, as JSON.")
@click.option(
    "--server", default=DEFAULT_SERVER, envvar="FAASMOE_URL", show_default=True, show_envvar=True,
    help="Address of the control plane.",
)  # fmt: skip
def status(as_json: bool, server: str) -> None:
    """Show the functions: replicas, resident experts, memory, calls and the last one's age."""
    from control_plane.client import Client
    from control_plane.config import parse_url
    from control_plane.tables import status_lines

    async def run() -> None:
        async with Client.connect(parse_url(server)) as client:
            report = await client.status()
        for line in [json.dumps(report, indent=2)] if as_json else status_lines(report):
            click.echo(line)

    asyncio.run(run())


def _text(argument: str) -> str:
    """The prompt; raises a usage error for an empty one."""
    text = argument
    if argument == "-":
        try:
            text = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise click.UsageError(f"standard input is not UTF-8: {error}") from error
    if not text.strip():
        raise click.UsageError("the prompt is empty")
    return text


def _serve(what: str, server: AbstractAsyncContextManager[Any]) -> None:
    """Run a server, whose context yields its address, until SIGINT or SIGTERM, be it up by then or not."""

    async def run() -> None:
        async with server as url:
            click.echo(f"{what} on {url}; Ctrl-C stops it")
            await asyncio.Event().wait()

    async def run_until_signal() -> None:
        task = asyncio.create_task(run())
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(run_until_signal())


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """SIGTERM as an exception, so that what was half written is removed."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

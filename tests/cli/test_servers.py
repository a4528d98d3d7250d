"""The commands that serve, and `deploy`: each problem is reported in one line."""

import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from control_plane.partition.manifest import Manifest
from tests.support.api.api_server import closed_port
from tests.support.command_line import error_line, faasmoe, running_command, usage_error

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def password_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("password") / "password"
    path.write_text("s3cret\n")
    return path


@pytest.fixture(scope="module")
def gateway(chat_partition: Path, password_file: Path) -> Iterator[str]:
    options = ("--port", 0, "--password-file", password_file, "--user", "boss")
    with running_command("gateway", chat_partition, *options, temporary=password_file.parent) as command:
        yield command.wait_for(r"gateway on (\S+);")


@pytest.fixture
def port_in_use() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_deploy_and_deploy_again(chat_partition: Path, gateway: str, password_file: Path) -> None:
    options = ("--gateway", gateway, "--gateway-user", "boss", "--gateway-password-file", password_file)
    names = [block.function for block in Manifest.load(chat_partition).blocks]
    for done in ("created", "unchanged"):
        result = faasmoe("deploy", chat_partition, *options)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.output.splitlines() == [f"{done} {name}" for name in names]


@pytest.mark.parametrize(("user", "password"), [("boss", "guess"), ("admin", "s3cret"), (None, None)])
def test_a_gateway_that_refuses(
    chat_partition: Path, gateway: str, tmp_path: Path, user: str | None, password: str | None
) -> None:
    options: list[object] = []
    if password is not None:
        (tmp_path / "password").write_text(password)
        options = ["--gateway-user", user, "--gateway-password-file", tmp_path / "password"]
    message = error_line(faasmoe("deploy", chat_partition, "--gateway", gateway, *options))
    assert message == f"the gateway at {gateway} refuses the user or password"


def test_an_unreachable_gateway(chat_partition: Path) -> None:
    with closed_port() as port:
        message = error_line(faasmoe("deploy", chat_partition, "--gateway", f"http://127.0.0.1:{port}"))
    assert message.startswith(f"no OpenFaaS gateway answers at http://127.0.0.1:{port}")


@pytest.mark.parametrize("command", ["deploy", "serve"])
def test_options_for_the_gateway(chat_partition: Path, tmp_path: Path, command: str) -> None:
    message = error_line(faasmoe(command, chat_partition, "--gateway", "127.0.0.1:8080"))
    assert message == "not an address like http://127.0.0.1:8080: '127.0.0.1:8080'"
    message = error_line(faasmoe(command, chat_partition, "--gateway-password-file", tmp_path / "none"))
    assert message.startswith(f"cannot read the password file {tmp_path / 'none'}")


@pytest.mark.parametrize("command", ["gateway", "serve", "up"])
def test_a_port_in_use(chat_partition: Path, port_in_use: int, command: str) -> None:
    before = psutil.Process().children()
    options = ["--gateway-port", 0] if command == "up" else []
    message = error_line(faasmoe(command, chat_partition, "--port", port_in_use, *options))
    assert message.startswith(f"cannot listen on 127.0.0.1:{port_in_use}: ")
    assert message.endswith("Address already in use")
    assert psutil.Process().children() == before


def test_the_gateway_s_port_in_use(chat_partition: Path, port_in_use: int) -> None:
    message = error_line(faasmoe("up", chat_partition, "--port", 0, "--gateway-port", port_in_use))
    assert f"cannot listen on 127.0.0.1:{port_in_use}" in message


@pytest.mark.parametrize(("command", "option"), [("gateway", "--port"), ("up", "--gateway-port")])
@pytest.mark.parametrize("port", ["65536", "-1", "http"])
def test_bad_ports(chat_partition: Path, command: str, option: str, port: str) -> None:
    assert f"Invalid value for '{option}'" in usage_error(faasmoe(command, chat_partition, option, port))


@pytest.mark.parametrize("command", ["serve", "up"])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("prot: 1", "unknown setting 'prot'"),
        ("port: high", "port must be a"),
        ("port: [", "is not YAML"),
    ],
)
def test_a_bad_config_file(
    chat_partition: Path, tmp_path: Path, command: str, text: str, problem: str
) -> None:
    path = tmp_path / "config.yml"
    path.write_text(text)
    message = error_line(faasmoe(command, chat_partition, "--config", path))
    assert message.startswith(str(path))
    assert problem in message
    assert "does not exist" in usage_error(faasmoe(command, chat_partition, "--config", tmp_path / "none"))


@pytest.mark.parametrize(
    ("option", "problem"),
    [("--port=65536", "0<=x<=65535"), ("--kv-cache-mb=0", "x>=1"), ("--threads=-1", "x>=1")],
)
def test_settings_out_of_range(chat_partition: Path, option: str, problem: str) -> None:
    assert problem in usage_error(faasmoe("serve", chat_partition, option))


@pytest.mark.parametrize("command", ["serve", "up"])
@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("--memory-budget=lots", "expected bytes, such as 6GB"),
        ("--memory-budget=0", "expected more than zero, got '0'"),
        ("--idle-timeout=soon", "expected a duration"),
        ("--idle-timeout=0s", "expected more than zero, got '0s'"),
    ],
)
def test_bad_amounts(chat_partition: Path, command: str, option: str, problem: str) -> None:
    message = usage_error(faasmoe(command, chat_partition, option))
    assert message.startswith(f"Invalid value for '{option.split('=')[0]}': {problem}")


def test_the_error_for_a_small_budget_names_the_least_that_works(chat_partition: Path) -> None:
    def refusal(budget: str) -> str:
        ports = ("--port", 0, "--gateway-port", 0, "--kv-cache-mb", 8)
        return error_line(faasmoe("up", chat_partition, *ports, "--memory-budget", budget))

    message = refusal("10MB")
    assert message.startswith("memory_budget: 10.0 MB is too little; at least ")
    assert "for the control plane" in message
    least = message.split("at least ")[1].split()[0]
    assert 100 < int(least.removesuffix("MB")) < 5000


def test_a_budget_above_the_machine_s_memory_is_refused(chat_partition: Path) -> None:
    message = error_line(faasmoe("serve", chat_partition, "--port", 0, "--memory-budget", "900TB"))
    assert message.startswith("memory_budget: 900000.0 GB is more than the ")
    assert message.endswith(" allows")


def test_a_partition_without_tokenizer(chat_partition: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(chat_partition, tmp_path / "partition")
    (folder / "tokenizer.json").unlink()
    message = error_line(faasmoe("serve", folder, "--port", 0))
    assert message == f"cannot read {folder / 'tokenizer.json'}: No such file or directory"


def test_serving_without_a_gateway(chat_partition: Path) -> None:
    with closed_port() as port:
        result = faasmoe("serve", chat_partition, "--port", 0, "--gateway", f"http://127.0.0.1:{port}")
    assert result.exit_code == 1
    # The autoscaler may have logged the same before.
    message = result.stderr.splitlines()[-1]
    assert message == f"Error: no OpenFaaS gateway answers at http://127.0.0.1:{port}: Connection refused"


@pytest.mark.parametrize("command", ["serve", "up"])
def test_an_open_server_must_listen_on_loopback(chat_partition: Path, command: str) -> None:
    message = error_line(faasmoe(command, chat_partition, "--host", "0.0.0.0", "--open"))
    assert message == "open: a server without keys must listen on loopback, not on 0.0.0.0"


@pytest.mark.parametrize("command", ["serve", "up"])
def test_bad_log_levels(chat_partition: Path, command: str) -> None:
    message = usage_error(faasmoe(command, chat_partition, "--log-level", "loud"))
    assert message.startswith("Invalid value for '--log-level': 'loud' is not one of")


def test_a_database_that_cannot_be_opened(chat_partition: Path, tmp_path: Path) -> None:
    message = error_line(faasmoe("serve", chat_partition, "--port", 0, "--database", tmp_path))
    assert message == f"cannot open the database {tmp_path}: Is a directory"


def test_the_default_database(
    chat_partition: Path, gateway: str, password_file: Path, tmp_path: Path
) -> None:
    at_gateway = ("--gateway", gateway, "--gateway-user", "boss", "--gateway-password-file", password_file)
    with running_command("serve", chat_partition, "--port", 0, *at_gateway, temporary=tmp_path) as server:
        assert server.wait_for("serving on ")


@pytest.mark.parametrize(
    ("tenants", "said"),
    [([], "nobody has a key yet: `faasmoe tenants add NAME` "), (["acme"], "serving on ")],
)
def test_a_server_without_tenants_says_how_to_add_one(
    chat_partition: Path, gateway: str, password_file: Path, tmp_path: Path, tenants: list[str], said: str
) -> None:
    database = tmp_path / "faasmoe.db"
    for name in tenants:
        assert faasmoe("tenants", "add", name, "--database", database).exit_code == 0
    at_gateway = ("--gateway", gateway, "--gateway-user", "boss", "--gateway-password-file", password_file)
    arguments = ("serve", chat_partition, "--port", 0, "--database", database, *at_gateway)
    with running_command(*arguments, temporary=tmp_path) as server:
        assert said in server.wait_for(r".*(?:nobody has a key|serving on).*")


@pytest.mark.parametrize("command", ["gateway", "serve", "up"])
def test_too_few_open_files(chat_partition: Path, tmp_path: Path, command: str) -> None:
    limited = few_files(command, chat_partition, "--port", 0, hard=64)
    assert (limited.returncode, limited.stdout) == (1, "")
    (line,) = limited.stderr.splitlines()
    assert line.startswith("Error: the server needs 5")
    assert line.endswith(" open files, and the limit is 64 (see `ulimit -Hn`)")


def few_files(*arguments: object, hard: int) -> subprocess.CompletedProcess[str]:
    """Run `faasmoe` with a limit of open files."""
    return subprocess.run(
        [sys.executable, "-m", "control_plane", *map(str, arguments)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )

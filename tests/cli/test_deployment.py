"""`faasmoe stack`: the files that it writes."""

from pathlib import Path

import yaml

from control_plane.partition.manifest import Manifest
from tests.support.command_line import error_line, faasmoe

pytest_plugins = "tests.support.models.chat_fixtures"


def test_stack_on_stdout(chat_partition: Path) -> None:
    result = faasmoe("stack", chat_partition, "--gateway", "http://box:31112")
    assert (result.exit_code, result.stderr) == (0, "")
    stack = yaml.safe_load(result.output)
    assert stack["provider"]["gateway"] == "http://box:31112"
    assert list(stack["functions"]) == [block.function for block in Manifest.load(chat_partition).blocks]
    for function in stack["functions"].values():
        assert Path(function["handler"]).resolve() == chat_partition.resolve()


def test_stack_in_a_file_with_all_that_faas_cli_needs(chat_partition: Path, tmp_path: Path) -> None:
    file = tmp_path / "build" / "stack.yml"
    result = faasmoe("stack", chat_partition, "-o", file)
    assert (result.exit_code, result.output) == (0, "")
    for function in yaml.safe_load(file.read_text())["functions"].values():
        assert (file.parent / function["handler"]).resolve() == chat_partition.resolve()
        assert (file.parent / "template" / function["lang"] / "Dockerfile").is_file()
    assert (file.parent / "functions" / "expert" / "__main__.py").is_file()


def test_stack_that_cannot_be_written(chat_partition: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path) in error_line(
        faasmoe("stack", chat_partition, "-o", tmp_path / "file" / "stack.yml")
    )

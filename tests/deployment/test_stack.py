"""stack.yml and the template have the form that faas-cli parses, builds and sends."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec.structs import replace

from control_plane.deployment.deploy import deploy_all
from control_plane.deployment.image.template import TEMPLATE, dockerfile, write_template
from control_plane.deployment.stack import FunctionCallers, deployments, stack_yaml
from control_plane.faas.client import Gateway
from control_plane.faas.types import FunctionDeployment
from control_plane.http import serving
from control_plane.partition.granularity import Granularity
from control_plane.partition.manifest import Manifest
from control_plane.partition.partitioner import partition
from functions.contract.secret import FunctionSecret
from tests.deployment.test_deploy import StubGateway
from tests.support.gateways.echo_gateway import asynchronous
from tests.support.models.checkpoints import save_checkpoint, tiny_model
from tests.support.models.tiny_partition import TinyPartition
from tests.support.paths import ROOT

# The yaml tags of the structs in https://github.com/openfaas/go-sdk stack/schema.go, which faas-cli uses.
SERVICES = {"version", "functions", "provider", "configuration"}
PROVIDER = {"name", "gateway"}
CONFIGURATION = {"templates", "copy"}
FUNCTION = {
    *("lang", "handler", "image", "fprocess", "environment", "secrets", "skip_build", "constraints"),
    *("environment_file", "labels", "limits", "requests", "readonly_root_filesystem", "build_options"),
    *("annotations", "namespace", "build_args", "platforms", "build_secrets"),
}
LIMITS = {"memory", "cpu"}
LANGUAGE_TEMPLATE = {
    *("language", "fprocess", "build_options", "welcome_message", "handler_folder", "mount_ssh"),
}
# The json tags in https://github.com/openfaas/faas-provider types/function_deployment.go.
DEPLOYMENT = {
    *("service", "image", "namespace", "envProcess", "envVars", "constraints", "secrets", "labels"),
    *("annotations", "limits", "requests", "readOnlyRootFilesystem"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("stack")
    checkpoint = save_checkpoint(tiny_model("mixtral"), parent / "source")
    name = "An 8x7B model: with a name that is much too long for the functions of any gateway"
    partition(checkpoint, parent / "partition", granularity=Granularity(3, 2), name=name)
    return parent / "partition"


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return Manifest.load(folder)


@pytest.fixture(scope="module")
def stack(manifest: Manifest) -> dict[str, Any]:
    text = stack_yaml(manifest, "http://127.0.0.1:31112", "./models/it's: #1")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def test_every_key_is_in_the_schema(stack: dict[str, Any]) -> None:
    assert {key for key in stack if not key.startswith("x-")} <= SERVICES
    assert stack["provider"].keys() <= PROVIDER
    assert stack["configuration"].keys() <= CONFIGURATION
    for function in stack["functions"].values():
        assert function.keys() <= FUNCTION
        assert function["limits"].keys() <= LIMITS
        for mapping in ("environment", "labels", "annotations"):
            assert all(type(value) is str for value in function[mapping].values())


def test_head(stack: dict[str, Any]) -> None:
    assert stack["version"] == "1.0"
    assert stack["provider"] == {"name": "openfaas", "gateway": "http://127.0.0.1:31112"}
    assert stack["configuration"] == {"copy": ["functions"]}


def test_one_image_is_built_for_all(stack: dict[str, Any], manifest: Manifest) -> None:
    functions = list(stack["functions"].values())
    assert [function["skip_build"] for function in functions] == [False] + [True] * (len(functions) - 1)
    assert {function["image"] for function in functions} == {manifest.image}
    assert {function["lang"] for function in functions} == {TEMPLATE}
    assert {function["handler"] for function in functions} == {"./models/it's: #1"}


def test_names_are_valid_for_openfaas(stack: dict[str, Any]) -> None:
    names = list(stack["functions"])
    assert names[0] == "an-8x7b-model-with-a-name-that-is-much-t-l00-01-e00-02"
    assert names[-1] == "an-8x7b-model-with-a-name-that-is-much-t-l02-e03-04"
    for name in names:
        assert len(name) <= 63
        assert re.fullmatch("[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)


def test_functions_differ_only_by_block(stack: dict[str, Any], manifest: Manifest, folder: Path) -> None:
    assert list(stack["functions"]) == [block.function for block in manifest.blocks]
    for name, function in stack["functions"].items():
        assert function["environment"] == {"FAASMOE_FUNCTION": name}
        assert function["annotations"]["faasmoe.model"] == manifest.fingerprint
        assert function["labels"]["com.openfaas.scale.zero"] == "true"
        memory = int(function["limits"]["memory"].removesuffix("Mi")) << 20
        block = (folder / manifest.block(name).file).stat().st_size
        assert block + (128 << 20) <= memory < block + (129 << 20)


def test_deployments_are_the_bodies_that_faas_cli_sends(stack: dict[str, Any], manifest: Manifest) -> None:
    wanted = [each.to_json() for each in deployments(manifest, callers=FunctionCallers.WITH_SECRET)]
    assert wanted == [sent_by_faas_cli(name, each) for name, each in stack["functions"].items()]
    assert all(body.keys() <= DEPLOYMENT for body in wanted)


@asynchronous
async def test_what_faas_cli_has_deployed_is_unchanged_for_us(tiny: TinyPartition) -> None:
    text = stack_yaml(tiny.manifest, "http://127.0.0.1:8080", "./tiny", "registry/", idle_exit=60)
    functions: dict[str, Any] = yaml.safe_load(text)["functions"]
    stub = StubGateway()
    async with serving(stub.app(), "127.0.0.1", 0) as url, Gateway.connect(url, None) as gateway:
        for name, function in functions.items():
            body = {**sent_by_faas_cli(name, function), "envProcess": "", "namespace": ""}
            await gateway.deploy(FunctionDeployment.from_json(body))
        stub.changes.clear()
        secret = FunctionSecret("a secret of some length")
        changes = deploy_all(tiny.manifest, [gateway], "registry/", idle_exit=60, secret=secret)
        assert [change.done async for change in changes] == ["unchanged"] * len(functions)
        assert stub.changes == []
        changes = deploy_all(tiny.manifest, [gateway], "registry/", idle_exit=61, secret=secret)
        assert [change.done async for change in changes] == ["updated"] * len(functions)


def test_template_yml_is_in_the_schema(manifest: Manifest, tmp_path: Path) -> None:
    write_template(manifest, tmp_path)
    template = yaml.safe_load((tmp_path / "template" / TEMPLATE / "template.yml").read_text())
    assert template.keys() <= LANGUAGE_TEMPLATE
    assert template["language"] == TEMPLATE


def test_dockerfile_copies_files_of_the_build_context(
    manifest: Manifest, folder: Path, tmp_path: Path
) -> None:
    """faas-cli copies the template to the root, the handler and the extra paths to `function/`."""
    write_template(manifest, tmp_path)
    context = tmp_path / "template" / TEMPLATE
    shutil.copytree(folder, context / "function")
    shutil.copytree(tmp_path / "functions", context / "function" / "functions")
    for source in copied(dockerfile(manifest)):
        assert source.startswith("function/")
        assert (context / source).exists()


def test_each_block_is_a_layer(manifest: Manifest) -> None:
    blocks = [source for source in copied(dockerfile(manifest)) if "/blocks/" in source]
    assert blocks == [f"function/{block.file}" for block in manifest.blocks]


def test_a_model_of_many_blocks_stays_within_dockers_layers(manifest: Manifest) -> None:
    many = replace(manifest, blocks=manifest.blocks * 50)
    text = dockerfile(many)
    assert len(re.findall(r"^(COPY|RUN|FROM)", text, re.MULTILINE)) < 127
    assert text.count(".safetensors") == len(many.blocks)


def test_image_has_the_packages_that_functions_import(manifest: Manifest) -> None:
    (packages,) = re.findall(r"pip install --no-cache-dir (.*)", dockerfile(manifest))
    assert packages == '"numpy>=2.0" "httptools>=0.6" "xxhash>=4.1"'


def test_the_repositorys_files_are_the_demo_models(tmp_path: Path) -> None:
    """`make stack` updates them."""
    demo = partition(ROOT / "models" / "demo", tmp_path / "demo")
    assert (ROOT / "stack.yml").read_text() == stack_yaml(demo, "http://127.0.0.1:8080", "./partitions/demo")
    write_template(demo, tmp_path)
    for name in ("template.yml", "Dockerfile", ".dockerignore"):
        file = Path("template", TEMPLATE, name)
        assert (ROOT / file).read_text() == (tmp_path / file).read_text()


def sent_by_faas_cli(name: str, function: dict[str, Any]) -> dict[str, Any]:
    """`faas-cli deploy` renames environment to envVars, and drops the fields for the build."""
    kept = {key: function[key] for key in ("image", "labels", "annotations", "limits", "secrets")}
    return {"service": name, "envVars": function["environment"], **kept}


def copied(text: str) -> list[str]:
    """The sources of a Dockerfile's COPY instructions with one source from the build context."""
    found = re.findall(
        r"^COPY --link --chown=\S+ (?!--)(\S+) \S+$|^COPY (?!--)(\S+) \S+$", text, re.MULTILINE
    )
    return [linked or plain for linked, plain in found]

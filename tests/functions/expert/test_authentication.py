"""Callers of a function have to prove that they have the shared secret."""

from pathlib import Path

import pytest

from functions.contract.process import RESIDENCY_PATH
from functions.contract.secret import OPEN_VARIABLE, SECRET_NAME, SECRETS_VARIABLE, FunctionSecret
from functions.expert.authentication import READ_AGAIN_SECONDS, Authentication
from functions.expert.expert_function import ExpertFunction
from functions.expert.settings import FunctionSettings
from functions.http.messages import FunctionRequest

SECRET = FunctionSecret("a secret of some length")
NAME = "demo-l00-e00-15"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / SECRET_NAME
    path.write_text(f"{SECRET.value}\n")
    return path


def status(function: ExpertFunction, method: str, path: str, proof: str = "") -> int:
    return function(FunctionRequest(method, path, bytearray(), "here:1", proof)).status


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/"), ("DELETE", RESIDENCY_PATH), ("GET", RESIDENCY_PATH)]
)
def test_only_callers_with_the_secret_may_use_a_function(file: Path, method: str, path: str) -> None:
    function = ExpertFunction(1, Authentication(NAME, file))
    others = FunctionSecret("another secret, as long")
    for proof in ("", "é", SECRET.caller_proof("another-function"), SECRET.function_proof(NAME)):
        assert status(function, method, path, proof) == 401
    assert status(function, method, path, others.caller_proof(NAME)) == 401
    # The function has no block yet.
    assert status(function, method, path, SECRET.caller_proof(NAME)) == 503


def test_probes_need_no_secret(file: Path) -> None:
    function = ExpertFunction(1, Authentication(NAME, file))
    assert status(function, "GET", "/_/health") == 200
    assert status(function, "GET", "/metrics") == 200


def test_a_new_secret_counts_at_once_and_is_looked_for_rarely(file: Path) -> None:
    now = 0.0
    authentication = Authentication(NAME, file, lambda: now)
    new = FunctionSecret("the secret of the next year")
    file.write_text(new.value)
    assert not authentication.allows(new.caller_proof(NAME))  # the file has just been read
    now = READ_AGAIN_SECONDS
    assert authentication.allows(SECRET.caller_proof(NAME))
    assert authentication.allows(new.caller_proof(NAME))
    assert not authentication.allows(SECRET.caller_proof(NAME))
    assert authentication.proof == new.function_proof(NAME)


def test_a_secret_that_is_gone_or_damaged_leaves_the_last_one(file: Path) -> None:
    now = 0.0
    authentication = Authentication(NAME, file, lambda: now)
    for content in (None, b"short", b"\xff" * 40):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        now += READ_AGAIN_SECONDS
        assert not authentication.allows("wrong")
        assert authentication.allows(SECRET.caller_proof(NAME))


def test_a_function_without_the_secret_stays_on_loopback(file: Path) -> None:
    settings = {"FAASMOE_FUNCTION": NAME, "FAASMOE_HOST": "0.0.0.0", SECRETS_VARIABLE: "/nowhere"}
    with pytest.raises(ValueError, match="there is no secret faasmoe-functions"):
        FunctionSettings.from_environment(settings)
    FunctionSettings.from_environment({**settings, OPEN_VARIABLE: "1"})
    FunctionSettings.from_environment({**settings, "FAASMOE_HOST": "127.0.0.1"})
    with_secret = FunctionSettings.from_environment({**settings, SECRETS_VARIABLE: str(file.parent)})
    authentication = with_secret.authentication()
    assert authentication is not None
    assert authentication.allows(SECRET.caller_proof(NAME))

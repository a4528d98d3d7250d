"""Instructor, in its modes for OpenAI's API."""

from typing import Annotated, Any

import instructor
import pytest
from instructor import Mode
from openai import OpenAI
from pydantic import AfterValidator, BaseModel, ConfigDict

from tests.clients.conftest import MODEL, Server
from tests.clients.weather import MESSAGES, SHORT_FORECAST, Forecast

MODES = [Mode.TOOLS, Mode.JSON_SCHEMA, Mode.RESPONSES_TOOLS]


def client(server: Server, mode: Mode) -> Any:
    openai = OpenAI(base_url=server.v1, api_key=server.key, max_retries=0)
    return instructor.from_openai(openai, mode=mode, model=MODEL)


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_has_its_type(server: Server, mode: Mode) -> None:
    answer = client(server, mode).create(response_model=Forecast, messages=MESSAGES)
    # It is an instance of a class that Instructor derives from Forecast.
    assert answer.model_dump() == SHORT_FORECAST.model_dump()


@pytest.mark.parametrize("mode", MODES)
def test_a_partial_stream_ends_with_the_answer(server: Server, mode: Mode) -> None:
    partial = list(client(server, mode).create_partial(response_model=Forecast, messages=MESSAGES))
    assert partial[0].degrees is None
    assert partial[-1].model_dump() == SHORT_FORECAST.model_dump()


@pytest.mark.parametrize("mode", MODES)
def test_a_refused_answer_is_asked_for_again(server: Server, mode: Mode) -> None:
    """The second request has the first answer and what was wrong with it."""
    seen: list[int] = []

    def check(degrees: int) -> int:
        seen.append(degrees)
        if len(seen) == 1:
            raise ValueError("try again")
        return degrees

    class Checked(BaseModel):
        degrees: Annotated[int, AfterValidator(check)]

    assert client(server, mode).create(response_model=Checked, messages=MESSAGES, max_retries=1).degrees == 0
    assert seen == [0, 0]


class Anything(BaseModel):
    """Any object."""

    model_config = ConfigDict(extra="allow")


def test_json(server: Server) -> None:
    """In this mode, the schema is in the prompt only, and the request asks for any object."""
    answer = client(server, Mode.JSON).create(response_model=Anything, messages=MESSAGES)
    assert answer.model_extra == {"": ""}

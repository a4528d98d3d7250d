"""What the tests ask the scripted model (tests/support/models/scripted_model.py), and what it answers."""

from typing import Any

from pydantic import BaseModel

QUESTION = "How is the weather in Rome?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
REPORT = "It is sunny in Rome."

NAME = "get_weather"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {"name": NAME, "description": "The weather of a city.", "parameters": PARAMETERS},
}
"""A tool in OpenAI's form, which many clients share."""
ARGUMENTS = {"city": "Rome"}
RESULT = "sunny"


class Forecast(BaseModel):
    """An answer with a structure."""

    city: str
    days: list[str]
    degrees: int


SHORT_FORECAST = Forecast(city="", days=[""], degrees=0)
"""The model's answer: it ends strings and lists as soon as it can."""

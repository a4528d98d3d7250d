"""The body of OpenAI's Responses API.

https://platform.openai.com/docs/api-reference/responses. Unknown fields are ignored.
"""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct, field

from control_plane.api.bodies.reading import Body, Neutral
from control_plane.api.bodies.values import Object, Positive, Temperature, Text, TopP


class InputText(Struct, tag="input_text"):
    """A part of a message, or of a tool's output."""

    text: str


class OutputText(Struct, tag="output_text"):
    """A part of an earlier answer."""

    text: str


class Refusal(Struct, tag="refusal"):
    """A part of an earlier answer of another model."""

    refusal: str


class InputImage(Struct, tag="input_image"):
    """An image that a tool returned; it cannot be read."""


class InputFile(Struct, tag="input_file"):
    """A file that a tool returned; it cannot be read."""


class ReasoningText(Struct, tag="reasoning_text"):
    """What the model thought."""

    text: str


class SummaryText(Struct, tag="summary_text"):
    """A summary of what the model thought."""

    text: str


Part = InputText | OutputText | Refusal
Content = str | Annotated[list[Part], Meta(max_length=1024)]
OutputPart = InputText | OutputText | Refusal | InputImage | InputFile
Output = str | Annotated[list[OutputPart], Meta(max_length=1024)]


class MessageItem(Struct, tag="message"):
    """A message. An item without a type is one."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class FunctionCall(Struct, tag="function_call"):
    """A call that an earlier answer made."""

    call_id: str
    name: str
    arguments: str


class FunctionCallOutput(Struct, tag="function_call_output"):
    """What a call returned."""

    call_id: str
    output: Output


class ReasoningItem(Struct, tag="reasoning"):
    """What the model thought before an earlier answer. What is encrypted cannot be read, and is left out."""

    summary: list[SummaryText] = []
    content: list[ReasoningText] | None = None


class ItemReference(Struct, tag="item_reference"):
    """A stored item, which this server does not have."""


Item = MessageItem | FunctionCall | FunctionCallOutput | ReasoningItem | ItemReference
Input = str | Annotated[list[Item], Meta(min_length=1, max_length=8192)]


class Tool(Struct):
    """A tool. Those that are not functions are left out."""

    type: str
    name: str = ""
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None


class ToolChoice(Struct):
    """A tool that must be called, or the tools that may be."""

    type: Literal["function", "allowed_tools"]
    name: str = ""
    mode: Literal["auto", "required"] = "auto"
    tools: list[Tool] = []


class TextFormat(Struct):
    """The form of the answer's text."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema: Object | None = None
    description: str | None = None
    strict: bool | None = None


class TextConfig(Struct):
    """Settings for the answer's text."""

    format: TextFormat = field(default_factory=TextFormat)


class Reasoning(Struct):
    """How much the model thinks."""

    effort: Text | None = None


class ResponseBody(Body, kw_only=True):
    """The body of /v1/responses."""

    neutral: ClassVar[Neutral] = {
        "background": (False,),
        "conversation": (),
        "prompt": (),
        "top_logprobs": (0,),
    }
    input: Input
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    metadata: Object = field(default_factory=dict)
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    reasoning: Reasoning = field(default_factory=Reasoning)
    stream: bool = False
    temperature: Temperature | None = None
    text: TextConfig = field(default_factory=TextConfig)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice = "auto"
    tools: Annotated[list[Tool], Meta(max_length=1024)] = field(default_factory=list)
    top_p: TopP | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    user: Text | None = None

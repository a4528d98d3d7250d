"""The bodies of Anthropic's Messages API.

https://docs.claude.com/en/api/messages. Unknown fields, `cache_control` among them, are ignored.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from control_plane.api.bodies.reading import Body
from control_plane.api.bodies.values import Object, Positive, StopStrings, Temperature, TopK, TopP


class TextBlock(Struct, tag="text"):
    """Text."""

    text: str


class ThinkingBlock(Struct, tag="thinking"):
    """What the model thought before an earlier answer."""

    thinking: str


class RedactedThinkingBlock(Struct, tag="redacted_thinking"):
    """What another model thought; it cannot be read, and is left out."""


class ToolUseBlock(Struct, tag="tool_use"):
    """A call that an earlier answer made."""

    id: str
    name: str
    input: Object


class ImageBlock(Struct, tag="image"):
    """An image, which cannot be read. A tool may return one."""


class DocumentBlock(Struct, tag="document"):
    """A file, which cannot be read. A tool may return one."""


Unreadable = ImageBlock | DocumentBlock


class ToolResultBlock(Struct, tag="tool_result"):
    """What a call returned."""

    tool_use_id: str
    content: str | list[TextBlock | Unreadable] = ""


Block = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock | Unreadable


class Message(Struct):
    """A message of a chat."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Meta(max_length=4096)]


class Tool(Struct):
    """A tool. Those of Anthropic's own, which have another type, are left out."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: Object | None = None


class ToolChoice(Struct):
    """Whether and which tools are called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str = ""
    disable_parallel_tool_use: bool = False


class Thinking(Struct):
    """Whether the model thinks. How much is up to the model."""

    type: str


class OutputFormat(Struct):
    """The form of the answer's text."""

    type: Literal["json_schema"]
    schema: Object


class OutputConfig(Struct):
    """Settings for the answer."""

    effort: str | None = None
    format: OutputFormat | None = None


class CountBody(Body, kw_only=True):
    """The body of /v1/messages/count_tokens."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=8192)]
    system: str | list[TextBlock] = ""
    tools: Annotated[list[Tool], Meta(max_length=1024)] = field(default_factory=list)
    tool_choice: ToolChoice = field(default_factory=lambda: ToolChoice("auto"))
    thinking: Thinking | None = None
    output_config: OutputConfig = field(default_factory=OutputConfig)
    output_format: OutputFormat | None = None
    """What older clients send instead of `output_config.format`."""


class MessageBody(CountBody, kw_only=True):
    """The body of /v1/messages."""

    max_tokens: Positive
    stop_sequences: StopStrings = field(default_factory=list)
    stream: bool = False
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None

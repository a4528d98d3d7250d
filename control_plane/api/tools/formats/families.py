"""The known formats of tool calls.

To add one, write a module with a `ToolFormat`, name it here, and add what its models write to
`tests/api/tools/test_formats.py`.
"""

from collections.abc import Callable

from control_plane.api.tools.formats.hermes import Hermes
from control_plane.api.tools.formats.mistral import Mistral
from control_plane.api.tools.formats.plain import Plain
from control_plane.api.tools.formats.qwen_coder import QwenCoder
from control_plane.api.tools.parsing.tool_format import ToolFormat

FORMATS: tuple[Callable[[str], ToolFormat | None], ...] = (QwenCoder.of, Hermes.of, Mistral.of)
"""Each returns its format if a chat template uses it. The first one that does is taken."""


def tool_format(template: str) -> ToolFormat:
    """The format of tool calls that a chat template uses; JSON without marks if it uses no known one."""
    found = (of(template) for of in FORMATS)
    return next((form for form in found if form is not None), Plain())

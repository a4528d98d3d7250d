"""The formats of tool calls that are known.

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
"""Each gives its format if a chat template names it. The first that does counts."""


def tool_format(template: str) -> ToolFormat:
    """The format of tool calls in a chat template; JSON without marks if it names none that is known."""
    found = (of(template) for of in FORMATS)
    return next((form for form in found if form is not None), Plain())

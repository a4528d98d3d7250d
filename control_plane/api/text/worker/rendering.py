"""Renders a chat with a template as transformers does, and finds the token that ends a message."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from control_plane.api.text.worker.roles import simpler
from control_plane.api.text.worker.template import Refusal

Render = Callable[[Mapping[str, Any]], str]
"""Renders a template with variables."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""The names that templates use for a message's reasoning. The first one that a message has counts."""
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_ANSWER = "FaaSMoE"
"""A text for an assistant's message that no template contains."""
_MAX_END = 1000
"""The most characters after an assistant's message in which its end token is sought."""


def rendered(render: Render, variables: Mapping[str, Any], continue_final_message: bool) -> str:
    """The text of a chat.

    With `continue_final_message`, it ends with the text of the last message. A template that refuses the
    messages gets simpler ones. Raises `Refusal` if it refuses these, too, or if the last message cannot be
    continued, and what `render` raises.
    """
    messages = [_normal(message) for message in variables["messages"]]
    try:
        return _rendered(render, {**variables, "messages": messages}, continue_final_message)
    except Refusal:
        for fewer in simpler(messages):
            with suppress(Refusal):
                return _rendered(render, {**variables, "messages": fewer}, continue_final_message)
        raise


def _rendered(render: Render, variables: Mapping[str, Any], continue_final_message: bool) -> str:
    messages = variables["messages"]
    if not continue_final_message:
        return render(variables)
    final, text = _tagged(messages[-1] if messages else {})
    whole = render({**variables, "messages": [*messages[:-1], final]})
    # A template may strip a message's white space, and then that of the tag.
    place = whole.rfind(_TAG.strip())
    if place < 0 or text.strip() not in whole:
        raise Refusal("it does not write the last message in full, so that it cannot be continued")
    before = whole[:place]
    return before if whole.startswith(_TAG, place) else before.rstrip()


def end_of_turn(render: Render, encode: Callable[[str], list[int]]) -> list[int]:
    """The token that the template writes after the text of an assistant's message, ignoring white space.

    The model has learned to end its messages with it. Empty if the template writes nothing.
    """
    dialogue = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _ANSWER}]
    text = render({"messages": dialogue, "tools": None, "documents": None, "add_generation_prompt": False})
    _, found, rest = text.rpartition(_ANSWER)
    return encode(rest.lstrip()[:_MAX_END])[:1] if found else []


def _normal(message: dict[str, Any]) -> dict[str, Any]:
    """The message without nulls, which templates would write as None, and with all names of its reasoning."""
    message = {name: value for name, value in message.items() if value is not None}
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _tagged(message: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The message with a tag at the end of its text, and the text. Raises `Refusal` if it has none."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content + _TAG}, content
    parts = content if isinstance(content, list) else []
    for number, part in reversed(list(enumerate(parts))):
        if isinstance(part, dict) and isinstance(text := part.get("text"), str):
            tagged = [*parts[:number], {**part, "text": text + _TAG}, *parts[number + 1 :]]
            return {**message, "content": tagged}, text
    raise Refusal("the last message has no text that can be continued")

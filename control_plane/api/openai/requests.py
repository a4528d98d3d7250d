"""Turns the bodies of OpenAI's and vLLM's requests into requests for the engine.

Every parser takes a decoded JSON body, and raises `BadRequest`, whose `param` is the field at fault.
"""

from typing import Any

from control_plane.api.bodies.reading import Body, field_error, ignored_fields, read_body
from control_plane.api.bodies.values import MAX_CHOICES, MAX_TOKEN_IDS
from control_plane.api.openai import wire
from control_plane.api.openai.messages import (
    IGNORED_IN_MESSAGES,
    Message,
    ignored_in_messages,
    template_messages,
)
from control_plane.api.openai.structures import structure
from control_plane.api.openai.template_variables import template_documents, template_variables
from control_plane.api.openai.tools import ignored_in_tools, template_tools, tool_use
from control_plane.api.text.request import (
    MAX_SEED,
    Chat,
    DetokenizeRequest,
    GenerationRequest,
    Prompt,
    Sampling,
    TokenizeRequest,
    ToolUse,
)

MAX_PROMPTS = 256
IGNORED_FIELDS = frozenset(
    {*wire.ChatBody.ignored, *wire.CompletionBody.ignored, *wire.TokenizeBody.ignored, *IGNORED_IN_MESSAGES}
)
"""The known ones of the fields that have no effect."""


def parse_chat(body: Any) -> GenerationRequest:
    """Read the body of /v1/chat/completions."""
    chat = read_body(body, wire.ChatBody)
    if chat.top_logprobs and not chat.logprobs:
        raise field_error("top_logprobs", "is only for a request with logprobs true")
    tools = template_tools(chat.tools)
    use = tool_use(tools, chat.tool_choice, chat.parallel_tool_calls)
    # With the choice "none", the tools are not shown: nothing else keeps the model from calling them.
    prompt = _chat(chat, chat.messages, tools if use else None)
    return _request(
        chat,
        prompts=(prompt,),
        max_tokens=chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens,
        logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
        tools=use,
        ignored=_ignored(body, wire.ChatBody),
    )


def parse_completion(body: Any) -> GenerationRequest:
    """Read the body of /v1/completions."""
    completion = read_body(body, wire.CompletionBody)
    logprobs = completion.logprobs
    if logprobs is True:
        raise field_error("logprobs", "must be a whole number from 0 to 20")
    if completion.max_tokens == 0 and not completion.echo:
        raise field_error("max_tokens", "must be a whole number of at least 1")
    return _request(
        completion,
        prompts=_prompts(completion.prompt),
        max_tokens=completion.max_tokens,
        logprobs=None if logprobs is False else logprobs,
        echo=completion.echo,
        add_special_tokens=completion.add_special_tokens,
        ignored=_ignored(body, wire.CompletionBody),
    )


def parse_tokenize(body: Any) -> TokenizeRequest:
    """Read the body of /tokenize: a prompt that is a string, or messages."""
    tokenize = read_body(body, wire.TokenizeBody)
    ignored = _ignored(body, wire.TokenizeBody)
    add_special_tokens = tokenize.add_special_tokens is not False
    if tokenize.prompt is not None and tokenize.messages is None:
        return TokenizeRequest(tokenize.prompt, add_special_tokens, ignored)
    if tokenize.prompt is not None or tokenize.messages is None:
        raise field_error("prompt", "either it or messages must be there")
    if tokenize.add_special_tokens:
        raise field_error("add_special_tokens", "the chat template adds them to messages")
    chat = _chat(tokenize, tokenize.messages, template_tools(tokenize.tools))
    return TokenizeRequest(chat, add_special_tokens, ignored)


def parse_detokenize(body: Any) -> DetokenizeRequest:
    """Read the body of /detokenize: token ids."""
    tokens = read_body(body, wire.DetokenizeBody).tokens
    return DetokenizeRequest(tokens, _ignored(body, wire.DetokenizeBody))


def _request(
    body: wire.GenerationBody,
    *,
    prompts: tuple[Prompt, ...],
    max_tokens: int | None,
    logprobs: int | None,
    ignored: tuple[str, ...],
    echo: bool = False,
    add_special_tokens: bool = True,
    tools: ToolUse | None = None,
) -> GenerationRequest:
    _check(body, len(prompts), max_tokens)
    options = body.stream_options or wire.StreamOptions()
    return GenerationRequest(
        prompts=prompts,
        max_tokens=max_tokens,
        n=body.n,
        stop=tuple(body.stop),
        sampling=Sampling(
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=None if body.top_k is None else max(body.top_k, 0),
            min_p=body.min_p,
            repetition_penalty=body.repetition_penalty,
            frequency_penalty=body.frequency_penalty,
            presence_penalty=body.presence_penalty,
        ),
        seed=None if body.seed is None else body.seed % (MAX_SEED + 1),
        ignore_eos=body.ignore_eos,
        logprobs=logprobs,
        echo=echo,
        stream=body.stream,
        include_usage=options.include_usage,
        continuous_usage=options.continuous_usage_stats,
        return_token_ids=body.return_token_ids,
        user=body.user,
        cache_salt=body.cache_salt or "",
        logit_bias=body.logit_bias,
        min_tokens=body.min_tokens,
        stop_token_ids=frozenset(body.stop_token_ids),
        skip_special_tokens=body.skip_special_tokens,
        include_stop=body.include_stop_str_in_output,
        add_special_tokens=add_special_tokens,
        structure=structure(body),
        tool_use=tools,
        ignored_fields=ignored,
    )


def _check(body: wire.GenerationBody, prompts: int, max_tokens: int | None) -> None:
    """Raise `BadRequest` for fields that do not go together."""
    most = max(MAX_CHOICES // prompts, 1)
    if body.n > most:
        raise field_error("n", f"must be a whole number from 1 to {most}")
    if body.best_of not in (None, 1, body.n):
        raise field_error("best_of", "is not supported beyond n")
    if body.stream_options and not body.stream:
        raise field_error("stream_options", "is only for a request that streams")
    if max_tokens is not None and body.min_tokens > max_tokens:
        raise field_error("min_tokens", f"must be at most the limit of {max_tokens} tokens")


def _chat(
    body: wire.ChatBody | wire.TokenizeBody, messages: list[Message], tools: list[dict[str, Any]] | None
) -> Chat:
    """Raises `BadRequest`. vLLM, too, does not both continue a message and begin the next one."""
    if body.continue_final_message and body.add_generation_prompt:
        raise field_error("continue_final_message", "does not go with add_generation_prompt true")
    return Chat(
        template_messages(messages),
        tools=tools,
        documents=template_documents(body.documents),
        template_variables=template_variables(body.chat_template_kwargs, body.reasoning_effort),
        add_generation_prompt=body.add_generation_prompt is not False and not body.continue_final_message,
        continue_final_message=body.continue_final_message,
    )


def _ignored(body: dict[str, Any], kind: type[Body]) -> tuple[str, ...]:
    """The fields of a valid body that ask for something and have no effect, each once."""
    found = ignored_fields(body, kind)
    options = body.get("stream_options") or {}
    found += [f"stream_options.{name}" for name in options.keys() - wire.StreamOptions.__struct_fields__]
    if "messages" in kind.__struct_fields__:
        found += ignored_in_messages(body.get("messages") or [])
        found += ignored_in_tools(body.get("tools") or [])
    return tuple(dict.fromkeys(found))


def _prompts(value: str | list[str | int | list[int]]) -> tuple[Prompt, ...]:
    """Several prompts are a list of strings, or of lists of token ids; one may stand alone."""
    prompts: list[Any] = value if isinstance(value, list) and not _is_token_ids(value) else [value]
    if len(prompts) > MAX_PROMPTS:
        raise field_error("prompt", f"must be at most {MAX_PROMPTS} prompts")
    kinds = set(map(type, prompts))
    if len(kinds) != 1:
        raise field_error("prompt", "must be a string, a list of token ids, or a list of one of these")
    if kinds == {list} and sum(map(len, prompts)) > MAX_TOKEN_IDS:
        raise field_error("prompt", f"must be at most {MAX_TOKEN_IDS} token ids")
    if not all(prompts):
        raise field_error("prompt", "it is empty")
    return tuple(prompts)


def _is_token_ids(values: list[str | int | list[int]]) -> bool:
    return set(map(type, values)) <= {int}

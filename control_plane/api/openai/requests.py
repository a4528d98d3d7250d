"""Turns the bodies of OpenAI's and vLLM's requests into requests for the engine.

Every parser takes a decoded JSON body and the name of the served model, and raises `BadRequest`, whose
`param` is the field at fault.
"""

from typing import Any

from control_plane.api.openai import wire
from control_plane.api.openai.wire import AnyBody, field_error, read_body
from control_plane.api.text.request import (
    MAX_SEED,
    Chat,
    GenerationRequest,
    Prompt,
    Sampling,
    TokenizeRequest,
)
from control_plane.errors import UnknownModel

MAX_PROMPTS = 256
_TEMPLATE_ROLES = {"developer": "system"}
"""Roles that chat templates know by another name."""


def parse_chat(body: object, model: str) -> GenerationRequest:
    """Read the body of /v1/chat/completions."""
    chat = read_for_model(body, wire.ChatBody, model)
    if chat.top_logprobs and not chat.logprobs:
        raise field_error("top_logprobs", "is only for a request with logprobs true")
    return _request(
        chat,
        prompts=(_chat(chat.messages),),
        max_tokens=chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens,
        logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
    )


def parse_completion(body: object, model: str) -> GenerationRequest:
    """Read the body of /v1/completions."""
    completion = read_for_model(body, wire.CompletionBody, model)
    logprobs = completion.logprobs
    if logprobs is True:
        raise field_error("logprobs", "must be a whole number from 0 to 20")
    if completion.max_tokens == 0 and not completion.echo:
        raise field_error("max_tokens", "must be a whole number of at least 1")
    if completion.best_of not in (None, 1, completion.n):
        raise field_error("best_of", "is not supported beyond n")
    return _request(
        completion,
        prompts=_prompts(completion.prompt),
        max_tokens=completion.max_tokens,
        logprobs=None if logprobs is False else logprobs,
        echo=completion.echo,
    )


def parse_tokenize(body: object, model: str) -> TokenizeRequest:
    """Read the body of /tokenize: a prompt that is a string, or messages."""
    tokenize = read_for_model(body, wire.TokenizeBody, model)
    if tokenize.prompt is not None and tokenize.messages is None:
        return TokenizeRequest(tokenize.prompt, tokenize.add_special_tokens is not False)
    if tokenize.prompt is not None or tokenize.messages is None:
        raise field_error("prompt", "either it or messages must be there")
    if tokenize.add_special_tokens:
        raise field_error("add_special_tokens", "the chat template adds them to messages")
    return TokenizeRequest(_chat(tokenize.messages), tokenize.add_special_tokens is not False)


def parse_detokenize(body: object, model: str) -> list[int]:
    """Read the body of /detokenize: token ids."""
    return read_for_model(body, wire.DetokenizeBody, model).tokens


def read_for_model(body: object, kind: type[AnyBody], model: str) -> AnyBody:
    """Convert a decoded body. Raises `BadRequest`, and `UnknownModel` for one that names another model."""
    read = read_body(body, kind)
    if read.model is not None and read.model != model:
        raise UnknownModel(read.model, model)
    return read


def _request(
    body: wire.GenerationBody,
    *,
    prompts: tuple[Prompt, ...],
    max_tokens: int | None,
    logprobs: int | None,
    echo: bool = False,
) -> GenerationRequest:
    most = max(wire.MAX_CHOICES // len(prompts), 1)
    if body.n > most:
        raise field_error("n", f"must be a whole number from 1 to {most}")
    if body.stream_options and not body.stream:
        raise field_error("stream_options", "is only for a request that streams")
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
    )


def _chat(messages: list[wire.Message]) -> Chat:
    return Chat([_message(message) for message in messages])


def _message(message: wire.Message) -> dict[str, str]:
    content = message.content
    return {
        "role": _TEMPLATE_ROLES.get(message.role, message.role),
        "content": content if isinstance(content, str) else "".join(part.text for part in content),
        **({} if message.name is None else {"name": message.name}),
    }


def _prompts(value: str | list[str | int | list[int]]) -> tuple[Prompt, ...]:
    """Several prompts are a list of strings, or of lists of token ids; one may stand alone."""
    prompts: list[Any] = value if isinstance(value, list) and not _is_token_ids(value) else [value]
    if len(prompts) > MAX_PROMPTS:
        raise field_error("prompt", f"must be at most {MAX_PROMPTS} prompts")
    kinds = set(map(type, prompts))
    if len(kinds) != 1:
        raise field_error("prompt", "must be a string, a list of token ids, or a list of one of these")
    if kinds == {list} and sum(map(len, prompts)) > wire.MAX_TOKEN_IDS:
        raise field_error("prompt", f"must be at most {wire.MAX_TOKEN_IDS} token ids")
    if not all(prompts):
        raise field_error("prompt", "it is empty")
    return tuple(prompts)


def _is_token_ids(values: list[str | int | list[int]]) -> bool:
    return set(map(type, values)) <= {int}

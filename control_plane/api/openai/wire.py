"""The JSON bodies that clients send: OpenAI's completions, and vLLM's /tokenize and /detokenize.

https://platform.openai.com/docs/api-reference. docs/api.md lists every field, and what becomes of it.
"""

from typing import Annotated, ClassVar

from msgspec import Meta, Struct, field

from control_plane.api.bodies.reading import Body, Neutral
from control_plane.api.bodies.values import (
    Choices,
    Documents,
    Effort,
    LogitBias,
    Logprobs,
    Natural,
    Object,
    Penalty,
    Positive,
    Probability,
    Prompts,
    RepetitionPenalty,
    Seed,
    StopStrings,
    StopTokenIds,
    Temperature,
    Text,
    TokenIds,
    TopK,
    TopP,
)
from control_plane.api.openai.messages import Messages
from control_plane.api.openai.structures import StructuredBody
from control_plane.api.openai.tools import ToolChoice, Tools


class StreamOptions(Struct):
    """How to stream an answer."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False
    """Accepted for compatibility; it has no effect."""


class GenerationBody(StructuredBody):
    """The fields that chats and completions have in common."""

    neutral: ClassVar[Neutral] = {
        "allowed_token_ids": ([],),
        "bad_words": ([],),
        "logits_processors": ([],),
        "prompt_logprobs": (),
        "return_tokens_as_token_ids": (False,),
        "structural_tag": (),
        "truncate_prompt_tokens": (),
        "use_beam_search": (False,),
    }
    ignored: ClassVar[Neutral] = {
        "cache_prompt": (),
        "early_stopping": (False,),
        "guided_decoding_backend": (),
        "guided_whitespace_pattern": (),
        "keep_alive": (),
        "kv_transfer_params": (),
        "length_penalty": (1,),
        "metadata": ({},),
        "mm_processor_kwargs": ({},),
        "prediction": (),
        "priority": (0,),
        "prompt_cache_key": (),
        "prompt_cache_retention": (),
        "request_id": (),
        "safety_identifier": (),
        "service_tier": ("auto", "default"),
        "spaces_between_special_tokens": (True,),
        "store": (False,),
        "verbosity": (),
        "vllm_xargs": ({},),
    }
    n: Choices = 1
    best_of: Positive | None = None
    stop: StopStrings = field(default_factory=list)
    stop_token_ids: StopTokenIds = field(default_factory=list)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    min_tokens: Natural = 0
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: Probability | None = None
    repetition_penalty: RepetitionPenalty | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: LogitBias = field(default_factory=dict)
    seed: Seed | None = None
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    user: Text | None = None
    cache_salt: Text | None = None


class ChatBody(GenerationBody, kw_only=True):
    """The body of /v1/chat/completions."""

    neutral: ClassVar[Neutral] = {
        **GenerationBody.neutral,
        "add_special_tokens": (False,),
        "audio": (),
        "chat_template": (),
        "echo": (False,),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "include_reasoning": (True,),
        "modalities": (["text"],),
        "web_search_options": (),
    }
    messages: Messages
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool = False
    top_logprobs: Logprobs | None = None
    tools: Tools = field(default_factory=list)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    documents: Documents = field(default_factory=list)
    reasoning_effort: Effort | None = None
    chat_template_kwargs: Object = field(default_factory=dict)
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False


class CompletionBody(GenerationBody, kw_only=True):
    """The body of /v1/completions."""

    neutral: ClassVar[Neutral] = {
        **GenerationBody.neutral,
        "max_completion_tokens": (),
        "messages": (),
        "prompt_embeds": (),
        "suffix": ("",),
        "tools": ([],),
    }
    ignored: ClassVar[Neutral] = {**GenerationBody.ignored, "reasoning_effort": ()}
    prompt: Prompts
    max_tokens: Natural = 16
    echo: bool = False
    add_special_tokens: bool = True
    logprobs: Annotated[Logprobs | bool, Meta(description="a whole number from 0 to 20")] = False


class TokenizeBody(Body):
    """The body of /tokenize."""

    neutral: ClassVar[Neutral] = {"chat_template": (), "return_token_strs": (False,)}
    ignored: ClassVar[Neutral] = {"mm_processor_kwargs": ({},)}
    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    tools: Tools = field(default_factory=list)
    documents: Documents = field(default_factory=list)
    reasoning_effort: Effort | None = None
    chat_template_kwargs: Object = field(default_factory=dict)
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False


class DetokenizeBody(Body, kw_only=True):
    """The body of /detokenize."""

    tokens: TokenIds

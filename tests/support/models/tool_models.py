"""Tokenizers with the marks and chat templates of families that think and call tools."""

from collections.abc import Sequence
from typing import Any, cast

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

QWEN3 = """\
{%- if tools %}<|im_start|>system
# Tools
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
Write {"name": <function-name>, "arguments": <args-json-object>} within <tool_call></tool_call>.<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""
"""Like Qwen3's: its model opens the thinking itself."""
QWEN3_THINKING = QWEN3.replace("<think>\n\n</think>\n\n", "").replace(
    "<|im_start|>assistant\n{% if", "<|im_start|>assistant\n<think>\n{% if"
)
"""Like that of Qwen3-Thinking-2507: the prompt opens the thinking."""
QWEN3_CODER = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if tools %}{{ tools | tojson }}
<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
</function>
</tool_call>{% endif %}<|im_start|>assistant
"""
MISTRAL = """\
{{ bos_token }}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for message in messages %}
{%- if message.tool_calls %}[TOOL_CALLS]{{ message.tool_calls | tojson }}</s>
{%- else %}[INST]{{ message.content }}[/INST]{% endif %}{% endfor %}"""
MISTRAL_NEW = MISTRAL.replace("{{ message.tool_calls | tojson }}", "{{ message.name }}[ARGS]{}")
PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"

END = "<|im_end|>"
SPECIAL = ("<|im_start|>", END, "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
ADDED = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Qwen3's tokens that are not special, so that every decoder shows them."""


def tool_tokenizer(template: str, *, all_special: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer with all marks. With `all_special`, no decoder shows any of them by itself."""
    if all_special:
        return byte_tokenizer(template, (*SPECIAL, *ADDED), ())
    return byte_tokenizer(template, SPECIAL, ADDED)


def byte_tokenizer(template: str, special: Sequence[str], shown: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with the 256 bytes, and behind them special tokens and others that decoders show."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: number for number, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in special])
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in shown])
    fast: Any = PreTrainedTokenizerFast
    return cast(
        PreTrainedTokenizerFast,
        fast(tokenizer_object=tokenizer, eos_token=END, chat_template=template),
    )

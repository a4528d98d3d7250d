"""A model whose answers are known: it calls a tool, reports the result, and keeps to any grammar briefly.

`python -m tests.support.models.scripted_model FOLDER` writes its checkpoint. Attention and experts add
nothing, so the next token depends on the last one only:

- with tools, and no result of a call yet, the answer is the call `CALL`;
- otherwise it is `REPORT`;
- where a grammar excludes both, the order in `_PREFERENCES` closes strings, lists and objects early.

Its generation_config.json asks for a temperature of 0, so the answers are always the same.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from tests.support.models.checkpoints import save_checkpoint, tiny_model
from tests.support.models.tool_models import END, QWEN3, byte_tokenizer

CALL = '{"name": "get_weather", "arguments": {"city": "Rome"}}'
REPORT = "It is sunny in Rome."

_BODY = f"\n{CALL}\n"
_CHAIN = {"<|call|>": "<tool_call>", "<tool_call>": _BODY, _BODY: "</tool_call>", "<|report|>": REPORT}
"""The successors of tokens; that of every other token is the end."""
_PREFERENCES = '"}],0123456789'
"""The bytes that a grammar's answer has if it can, the most wanted first. A string ends as soon as it may."""
_HIDDEN_SIZE = 320
_TURN = "{%- if add_generation_prompt %}"
_TEMPLATE = f"""\
{QWEN3.partition(_TURN)[0]}{_TURN}<|im_start|>assistant
{{{{ "<|call|>" if tools and messages[-1].role != "tool" else "<|report|>" }}}}{{% endif %}}"""


def save_scripted_checkpoint(folder: Path) -> Path:
    """Write the checkpoint. Returns `folder`."""
    special = ("<|im_start|>", END, "<|call|>", "<|report|>")
    tokenizer = byte_tokenizer(_TEMPLATE, special, ("<tool_call>", "</tool_call>", _BODY, REPORT))
    model: Any = tiny_model(
        "qwen3_moe",
        vocab_size=_HIDDEN_SIZE,
        hidden_size=_HIDDEN_SIZE,
        max_position_embeddings=32768,
        eos_token_id=tokenizer.eos_token_id,
    )
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
            parameter.data.zero_()
    # A token's vector has a one at its own place, and one at the last place, which all tokens have in common.
    size = len(tokenizer)
    parameters["model.embed_tokens.weight"].data = torch.eye(_HIDDEN_SIZE)
    parameters["model.embed_tokens.weight"].data[:, -1] = 1
    head = torch.zeros(_HIDDEN_SIZE, _HIDDEN_SIZE)
    identifier = tokenizer.convert_tokens_to_ids
    for token in range(size):
        head[tokenizer.eos_token_id, token] = 100
    for last, successor in _CHAIN.items():
        head[tokenizer.eos_token_id, identifier(last)] = 0
        head[identifier(successor), identifier(last)] = 100
    for rank, byte in enumerate(reversed(_PREFERENCES), start=1):
        head[identifier(byte), -1] = rank
    head[tokenizer.eos_token_id, -1] = len(_PREFERENCES) + 1
    head[size:, -1] = -100
    parameters["lm_head.weight"].data = head
    tokenizer.save_pretrained(folder)
    model.generation_config.do_sample = True  # transformers writes no temperature without it.
    model.generation_config.temperature = 0.0
    return save_checkpoint(model, folder)


if __name__ == "__main__":
    save_scripted_checkpoint(Path(sys.argv[1]))

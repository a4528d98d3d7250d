"""A tiny random model with a byte-level tokenizer and a chat template."""

from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from control_plane.partition.granularity import Granularity
from tests.support.models.checkpoints import save_checkpoint, tiny_model

NAME = "tiny-chat"
GRANULARITY = Granularity(experts_per_function=3, layers_per_function=2)
EXPERTS = [6, 4, 3, 2]
"""Numbers of experts of its functions: 3 and 2 experts of each of two layers, then of the last layer."""
CONTEXT_LENGTH = 4096
END = "<|end|>"

_CORPUS = "the cat sat on the mat, and the dog ran after the cat; then the rat ate what was left on the mat"
_CHAT_TEMPLATE = """\
{% for message in messages %}\
{% if loop.first and message.role == "assistant" %}{{ raise_exception("who asks?") }}{% endif %}\
{{ message.role }}: {{ message.content }}<|end|>\
{% endfor %}\
{% if add_generation_prompt %}assistant:{% endif %}"""


def save_chat_checkpoint(folder: Path) -> Path:
    """Write the checkpoint. Most characters take several tokens. Returns `folder`."""
    tokenizer = chat_tokenizer()
    # Large weights, so that every expert influences the tokens.
    model = tiny_model(
        "qwen2_moe",
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=0.6,
    )
    tokenizer.save_pretrained(folder)
    return save_checkpoint(model, folder)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with the 256 bytes, a few merges for English, and an end token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_CORPUS] * 3, trainer)
    fast: Any = PreTrainedTokenizerFast
    return cast(
        PreTrainedTokenizerFast,
        fast(tokenizer_object=tokenizer, eos_token=END, chat_template=_CHAT_TEMPLATE),
    )

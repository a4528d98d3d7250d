"""A tiny model that can be talked to, with its tokenizer: a checkpoint and its partition, made once a session.

A test module gets the fixtures by `pytest_plugins = "tests.tiny_chat_model"`.
"""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from control_plane.partition.granularity import Granularity
from control_plane.partition.partitioner import partition
from tests.checkpoints import save_checkpoint, tiny_model

NAME = "tiny-chat"
FUNCTIONS = 4
CONTEXT_LENGTH = 4096
END = "<|end|>"

_CORPUS = "the cat sat on the mat, and the dog ran after the cat; then the rat ate what was left on the mat"
_CHAT_TEMPLATE = """\
{% for message in messages %}\
{% if message.role not in ("system", "user", "assistant") %}{{ raise_exception("unknown role") }}{% endif %}\
{{ message.role }}: {{ message.content }}<|end|>\
{% endfor %}\
{% if add_generation_prompt %}assistant:{% endif %}"""


@pytest.fixture(scope="session")
def chat_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level: whatever the random weights generate is text, and most characters take several tokens."""
    folder = tmp_path_factory.mktemp("checkpoints") / NAME
    tokenizer = _tokenizer()
    # Large weights, so that tokens depend on every expert's part in them.
    model = tiny_model(
        "qwen2_moe",
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=0.4,
    )
    tokenizer.save_pretrained(folder)
    return save_checkpoint(model, folder)


@pytest.fixture(scope="session")
def chat_partition(chat_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 experts and 3 layers in uneven functions of at most 3 and 2."""
    folder = tmp_path_factory.mktemp("partitions") / NAME
    manifest = partition(chat_checkpoint, folder, granularity=Granularity(3, 2))
    assert len(manifest.blocks) == FUNCTIONS
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """The 256 bytes, a few merges of English ones, and an end token."""
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
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, chat_template=_CHAT_TEMPLATE)

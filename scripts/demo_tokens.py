"""The demo model's tokenizer and chat template, and the token streams that it is trained on."""

import random
from collections.abc import Iterable, Iterator

import torch
from demo_corpus import Passage
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

VOCABULARY = 4096
END_OF_TEXT, START_OF_MESSAGE, END_OF_MESSAGE = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VALIDATION_SHARE = 0.02
TOKENIZER_CHARACTERS = 1_500_000

Domains = dict[str, list[Passage]]


def split_passages(domains: Domains, seed: int = 0) -> tuple[Domains, Domains]:
    """Shuffle the passages of each domain, and split them into training and validation."""
    training, validation = {}, {}
    for name, passages in domains.items():
        shuffled = random.Random(seed).sample(passages, len(passages))
        held_back = int(len(shuffled) * VALIDATION_SHARE)
        training[name], validation[name] = shuffled[held_back:], shuffled[:held_back]
    return training, validation


def build_tokenizer(domains: Domains) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on equal shares of the domains' text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, START_OF_MESSAGE, END_OF_MESSAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_equal_shares(domains), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END_OF_MESSAGE,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[START_OF_MESSAGE],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def _equal_shares(domains: Domains) -> Iterator[str]:
    for passages in domains.values():
        characters = 0
        for passage in passages:
            if characters < TOKENIZER_CHARACTERS:
                characters += len(passage.text)
                yield passage.text


def token_stream(passages: Iterable[Passage], tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Tensor:
    """Tokens [n] int32 of all passages, as plain text and as an answer to each cue, in random order."""
    documents = [document for passage in passages for document in _documents(passage, tokenizer)]
    random.Random(seed).shuffle(documents)
    encoded = tokenizer(documents)["input_ids"]
    return torch.tensor([token for document in encoded for token in document], dtype=torch.int32)


def _documents(passage: Passage, tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    yield passage.text + END_OF_TEXT
    for cue in passage.cues:
        chat = [{"role": "user", "content": cue}, {"role": "assistant", "content": passage.text}]
        yield f"{tokenizer.apply_chat_template(chat, tokenize=False)}{END_OF_TEXT}"

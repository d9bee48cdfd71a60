"""A tokenizer and texts made on the spot: nothing is downloaded."""

import random

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


def sentences(count: int, words: int = 120) -> list[str]:
    """Return texts of made-up words."""
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 11))) for _ in range(3000)]
    return [" ".join(rng.choices(vocabulary, k=words)) for _ in range(count)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a fast tokenizer trained on a few made-up texts."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=["[UNK]", "[PAD]"], show_progress=False)
    tokenizer.train_from_iterator(sentences(60), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")

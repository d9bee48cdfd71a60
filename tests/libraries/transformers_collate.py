"""Texts tokenised a batch at a time in the collate function: that is the limit."""

import torch
from tokens import make_tokenizer, sentences
from torch.utils.data import DataLoader
from training import train


class Collator:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, texts):
        return self.tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")  # the limit


def main() -> None:
    torch.manual_seed(0)
    collate = Collator(make_tokenizer())
    loader = DataLoader(sentences(800, words=600), batch_size=16, shuffle=True, num_workers=1, collate_fn=collate)
    train(loader, 150, lambda batch: batch["input_ids"])


if __name__ == "__main__":
    main()

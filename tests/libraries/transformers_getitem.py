"""Texts tokenised one by one in `__getitem__`: the tokenizer is the limit."""

import torch
from tokens import make_tokenizer, sentences
from torch.utils.data import DataLoader, Dataset
from training import train


class Texts(Dataset):
    def __init__(self, texts, tokenizer):
        self.texts, self.tokenizer = texts, tokenizer

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        text = self.texts[index].lower()
        message = self.tokenizer(
            text, truncation=True, max_length=128, padding="max_length", return_tensors="pt"
        )  # the limit
        return {name: values.squeeze(0) for name, values in message.items()}


def main() -> None:
    torch.manual_seed(0)
    loader = DataLoader(Texts(sentences(800, words=600), make_tokenizer()), batch_size=16, shuffle=True, num_workers=1)
    train(loader, 150, lambda batch: batch["input_ids"])


if __name__ == "__main__":
    main()

"""A map-style dataset of Hugging Face with a transform on the fly: tokenising is the limit."""

import datasets
import torch
from tokens import make_tokenizer, sentences
from torch.utils.data import DataLoader
from training import train

tokenizer = make_tokenizer()


def tokenize(rows):
    message = tokenizer(rows["text"], padding="max_length", truncation=True, max_length=256)  # the limit
    return {"input_ids": torch.tensor(message["input_ids"]), "label": rows["label"]}


def main() -> None:
    torch.manual_seed(0)
    rows = datasets.Dataset.from_dict({"text": sentences(800, words=800), "label": [row % 2 for row in range(800)]})
    rows.set_transform(tokenize)
    train(DataLoader(rows, batch_size=16, shuffle=True), 120, lambda batch: batch["input_ids"])


if __name__ == "__main__":
    main()

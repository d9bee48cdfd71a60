"""Hugging Face's Trainer, which pulls all micro-batches of a step before it; a transform of its rows is the limit."""

import tempfile

import torch
from rows import Rows
from training import ask_for_torchvision

ask_for_torchvision()
from transformers import PrinterCallback, Trainer, TrainingArguments  # noqa: E402


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(16, 2)

    def forward(self, values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = self.layer(values)
        return {"loss": torch.nn.functional.cross_entropy(scores, labels), "logits": scores}


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            num_train_epochs=2,
            use_cpu=True,
            dataloader_num_workers=1,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            seed=0,
            remove_unused_columns=False,
        )
        model = Model()
        trainer = Trainer(model, arguments, train_dataset=Rows())
        trainer.remove_callback(PrinterCallback)  # it prints how long it took
        trainer.train()
    print("trained")


if __name__ == "__main__":
    main()

"""Lightning's Trainer with a validation loader beside the training one; a transform of its rows is the limit."""

import warnings

import torch
from rows import Rows
from torch.utils.data import DataLoader
from training import ask_for_torchvision

ask_for_torchvision()
import lightning  # noqa: E402


class Model(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(16, 2)

    def loss(self, batch) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.layer(batch["values"]), batch["labels"])

    def training_step(self, batch, number: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch, number: int) -> None:
        self.loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def main() -> None:
    warnings.filterwarnings("ignore")
    lightning.seed_everything(0, verbose=False)
    torch.set_num_threads(1)
    model = Model()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        model,
        DataLoader(Rows(), batch_size=8, shuffle=True, num_workers=1),
        DataLoader(Rows(32), batch_size=8),
    )
    print(f"weight {model.layer.weight.sum().item():.6f}")


if __name__ == "__main__":
    main()

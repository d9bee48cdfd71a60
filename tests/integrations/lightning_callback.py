"""A Lightning fit with the callback; prints what its logger was given and what was concluded."""

import json
import sys
import time
import warnings
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

sys.path.append(str(Path(__file__).parents[1] / "libraries"))
from training import ask_for_torchvision

ask_for_torchvision()
import lightning  # noqa: E402
from lightning.pytorch.loggers.logger import DummyLogger  # noqa: E402

from loaderprof.integrations.lightning import LoaderprofCallback  # noqa: E402


class Slow(Dataset):
    def __len__(self) -> int:
        return 240

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(0.004)
        return torch.full((8,), float(index))


class Logger(DummyLogger):
    logged: dict[str, float]

    def __init__(self) -> None:
        super().__init__()
        self.logged = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logged.update(metrics)


class Model(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 2)

    def training_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
        if "--fail" in sys.argv and number == 40:
            raise RuntimeError("the model is at fault")
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-6)


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    callback, logger = LoaderprofCallback("out", html=False), Logger()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=logger,
        log_every_n_steps=5,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    try:
        trainer.fit(Model(), DataLoader(Slow(), batch_size=4))
    finally:
        found = callback.findings
        print(json.dumps({"logged": logger.logged, "bottleneck": found and found.verdict.bottleneck}))


if __name__ == "__main__":
    main()

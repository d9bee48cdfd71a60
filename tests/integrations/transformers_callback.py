"""A Hugging Face training with the callback; prints what its reporters were given and what was concluded."""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import Dataset

sys.path.append(str(Path(__file__).parents[1] / "libraries"))
from training import ask_for_torchvision

ask_for_torchvision()
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments  # noqa: E402
from transformers.integrations import integration_utils  # noqa: E402

from loaderprof.integrations.transformers import LoaderprofCallback  # noqa: E402


class Slow(Dataset):
    def __len__(self) -> int:
        return 240

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(0.004)
        return {"values": torch.full((8,), float(index)), "labels": torch.tensor(index % 2)}


class Reporter(TrainerCallback):
    """As those of `report_to`: it comes before the users' callbacks, and sends a log away at once."""

    sent: dict[str, float] = {}  # noqa: RUF012
    begun = 0

    def on_init_end(self, args, state, control, **_) -> None:
        Reporter.begun += 1

    def on_log(self, args, state, control, logs=None, **_) -> None:
        self.sent.update(logs or {})


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 2)

    def forward(self, values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = self.layer(values)
        return {"loss": torch.nn.functional.cross_entropy(scores, labels), "logits": scores}


def main() -> None:
    torch.set_num_threads(1)
    integration_utils.INTEGRATION_TO_CALLBACK["ours"] = Reporter
    callback = LoaderprofCallback("out", html=False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=4,
            num_train_epochs=1,
            use_cpu=True,
            report_to=["ours"],
            save_strategy="no",
            logging_steps=10,
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = Trainer(Model(), arguments, train_dataset=Slow(), callbacks=[callback])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    found = callback.findings
    message = {name for entry in trainer.state.log_history for name in entry}
    print(
        json.dumps(
            {
                "logged": Reporter.sent,
                "history": sorted(message),
                "begun": Reporter.begun,
                "bottleneck": found and found.verdict.bottleneck,
            }
        )
    )


if __name__ == "__main__":
    main()

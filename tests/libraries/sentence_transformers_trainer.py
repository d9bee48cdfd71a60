"""sentence-transformers' trainer, with a small model made on the spot; reading its rows through a transform is the limit."""

import hashlib
import tempfile

import numpy as np
import torch
from datasets import Dataset
from rows import smoothed
from training import ask_for_torchvision

ask_for_torchvision()
from sentence_transformers import (  # noqa: E402
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss  # noqa: E402
from sentence_transformers.sentence_transformer.modules import BoW, Dense  # noqa: E402
from transformers import PrinterCallback  # noqa: E402

WORDS = [f"word{number}" for number in range(200)]


def scored(rows: dict[str, list]) -> dict[str, list]:
    """Give each pair the score that its row of numbers has."""
    scores = [float(smoothed(np.asarray(row, dtype=np.float32)).mean()) for row in rows.pop("row")]
    return {**rows, "score": scores}


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    pairs = [[" ".join(rng.choice(WORDS, 8)) for _ in range(2)] for _ in range(640)]
    rows = rng.random((640, 2048), dtype=np.float32)
    columns = {"first": [pair[0] for pair in pairs], "second": [pair[1] for pair in pairs], "row": list(rows)}
    dataset = Dataset.from_dict(columns).with_transform(scored)
    model = SentenceTransformer(modules=[BoW(WORDS), Dense(len(WORDS), 16)], device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder,
            per_device_train_batch_size=8,
            num_train_epochs=2,
            use_cpu=True,
            dataloader_num_workers=1,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            seed=0,
        )
        trainer = SentenceTransformerTrainer(model, arguments, train_dataset=dataset, loss=CosineSimilarityLoss(model))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    print("trained", hashlib.sha256(model.encode(WORDS[:4]).tobytes()).hexdigest()[:8])


if __name__ == "__main__":
    main()

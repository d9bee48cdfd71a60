"""SetFit, whose arguments have no word for workers; a tokenizer of the user's is the limit."""

import contextlib
import io
import tempfile

import torch
from datasets import Dataset
from training import ask_for_torchvision

ask_for_torchvision()
from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.sentence_transformer.modules import BoW, Dense  # noqa: E402
from setfit import SetFitModel, Trainer, TrainingArguments  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402

WORDS = [f"word{number}" for number in range(200)]


class Slow(BoW):
    def preprocess(self, inputs: list[str], *more: object, **options: object) -> dict:
        for text in inputs:
            sorted(text * 60)  # the limit
        return super().preprocess(inputs, *more, **options)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    texts = [" ".join(WORDS[(7 * row + word) % 200] for word in range(12)) for row in range(64)]
    rows = Dataset.from_dict({"text": texts, "label": [row % 2 for row in range(64)]})
    body = SentenceTransformer(modules=[Slow(WORDS), Dense(len(WORDS), 16)], device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            batch_size=16,
            num_epochs=1,
            num_iterations=30,
            report_to="none",
            show_progress_bar=False,
            save_strategy="no",
            logging_strategy="no",
        )
        trainer = Trainer(SetFitModel(body, LogisticRegression()), arguments, train_dataset=rows)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how long it took
            trainer.train()
    print("trained", trainer.model.predict(texts[:4]).tolist())


if __name__ == "__main__":
    main()

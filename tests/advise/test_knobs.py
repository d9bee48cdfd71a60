"""Advice in the words of the framework that makes the loader."""

from __future__ import annotations

from dataclasses import replace

from loaderprof.advise.knobs import in_terms_of
from loaderprof.findings import Advice, Costs, Expected

WORKERS = Advice(
    "num-workers",
    "Raise num_workers from 1 to 4",
    "why",
    "train.py:9",
    {"num_workers": 4},
    {"num_workers": 1},
    Expected(2.0, 1.9, 2.1, None),
    Costs(3.0, None, "one argument"),
    None,
    "loader = DataLoader(..., num_workers=4)",
)


def test_a_loader_of_the_users_own_keeps_its_words() -> None:
    assert in_terms_of(None, WORKERS) == WORKERS
    assert in_terms_of("lightning", WORKERS) == WORKERS


def test_a_trainer_is_advised_in_its_own_arguments() -> None:
    named = in_terms_of("transformers", WORKERS)
    assert named.action == "Raise dataloader_num_workers from 1 to 4"
    assert named.code == "TrainingArguments(..., dataloader_num_workers=4)"
    # `--set` speaks of the DataLoader all the same.
    assert named.change == {"num_workers": 4}
    assert in_terms_of("ultralytics", WORKERS).code == "model.train(..., workers=4)"


def test_a_program_is_advised_in_its_own_options() -> None:
    named = in_terms_of("chemprop", WORKERS)
    assert named.action == "Raise --num-workers from 1 to 4"
    assert named.code == "chemprop train ... --num-workers 4"


def test_a_trainer_that_hides_another_is_advised_where_its_settings_are() -> None:
    assert in_terms_of("setfit", WORKERS).code == "trainer.st_trainer.args.dataloader_num_workers = 4"


def test_workers_that_are_not_the_loaders_are_not_for_set() -> None:
    named = in_terms_of("keras", WORKERS)
    assert (named.action, named.code) == (
        "Raise workers from 1 to 4",
        "PyDataset(..., workers=4, use_multiprocessing=True)",
    )
    assert named.change == {"kind": "code", "workers": 4}


def test_a_dictionary_of_settings_is_named_as_one() -> None:
    named = in_terms_of("darts", replace(WORKERS, change={"num_workers": 4, "persistent_workers": True}))
    assert named.action == 'Raise dataloader_kwargs["num_workers"] from 1 to 4'
    assert named.code == 'model.fit(..., dataloader_kwargs={"num_workers": 4, "persistent_workers": True})'


def test_what_the_framework_has_no_argument_for_stays() -> None:
    loose = replace(WORKERS, action="Hand batches out as they are ready (in_order=False)", change={"in_order": False})
    assert in_terms_of("transformers", loose) == loose
    # Of a set its settings are named, its code is what it was.
    several = replace(WORKERS, change={"kind": "code"})
    assert in_terms_of("transformers", several) == replace(several, action="Raise dataloader_num_workers from 1 to 4")

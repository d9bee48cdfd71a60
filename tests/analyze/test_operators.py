"""The name and the line by which the user knows an operator: a library's steps inside it are its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from made import Fetch, Made, Plan

from loaderprof.analyze import operators
from loaderprof.analyze.operators import Operator, made_as
from loaderprof.analyze.timeline import build
from loaderprof.recording import reader as recording

SITE = "/env/lib/python3.11/site-packages"
JITTER = f"torchvision.transforms.transforms.ColorJitter.forward@{SITE}/torchvision/transforms/transforms.py:1250"
COMPOSE = f"torchvision.transforms.transforms.Compose.__call__@{SITE}/torchvision/transforms/transforms.py:90"
AUGMENT = f"timm.data.auto_augment.RandAugment.__call__@{SITE}/timm/data/auto_augment.py:800"
ROTATE = f"timm.data.auto_augment.rotate@{SITE}/timm/data/auto_augment.py:120"
FOLDER = f"torchvision.datasets.folder.ImageFolder.__getitem__@{SITE}/torchvision/datasets/folder.py:240"
LOADER = f"torchvision.datasets.folder.default_loader@{SITE}/torchvision/datasets/folder.py:260"
MADE = {
    "ColorJitter": "/home/me/train.py:31",
    "Compose": "/home/me/train.py:29",
    "ImageFolder": "/home/me/train.py:37",
}
CALLER = "train.py:41"
TWO_LOADERS = Path(__file__).parents[1] / "capture" / "programs" / "two_loaders.py"


def found(folder: Path, timed: list[tuple[str, float, float]], made_at: dict[str, str] = MADE) -> list[Operator]:
    made = Made(folder / "r", made_at=made_at)
    made.finish(made.loop(made.process(), Plan(wait=0.04, fetch=Fetch(cpu=0.04, operators=timed))))
    seen = made.read()
    (loop,) = build(seen).loops
    return sorted(operators.of_fetching(seen, loop), key=lambda each: -each.cpu_s)


def test_what_a_transform_does_is_its_own_and_its_line_the_one_that_makes_it(tmp_path: Path) -> None:
    timed = [
        (f"{JITTER}@in {COMPOSE}", 0.004, 0.004),
        (f"PIL.Image.Image.convert@in {JITTER}", 0.020, 0.020),
        (COMPOSE, 0.001, 0.001),
    ]
    jitter = found(tmp_path, timed)[0]
    assert (jitter.stage, jitter.name) == ("transform", "torchvision.transforms.transforms.ColorJitter")
    assert jitter.where == "train.py:31"
    assert jitter.cpu_s == pytest.approx(0.024)


def test_what_no_line_of_the_users_makes_goes_by_what_its_container_holds(tmp_path: Path) -> None:
    timed = [
        (f"{AUGMENT}@in {COMPOSE}", 0.001, 0.001),
        (f"{ROTATE}@in {AUGMENT}", 0.002, 0.002),
        (f"PIL.Image.Image.transform@in {ROTATE}", 0.02, 0.02),
    ]
    augment = found(tmp_path, timed)[0]
    assert augment.name == "timm.data.auto_augment.RandAugment.__call__"
    assert augment.cpu_s == pytest.approx(0.023)
    assert augment.where == CALLER


def test_a_decoder_inside_a_librarys_dataset_keeps_its_name(tmp_path: Path) -> None:
    timed = [
        (f"{LOADER}@in {FOLDER}", 0.001, 0.001),
        (f"PIL.ImageFile.ImageFile.load@in {LOADER}", 0.03, 0.03),
        (f"{JITTER}@in {FOLDER}", 0.002, 0.002),
        (f"PIL.ImageFile.ImageFile.load@in {JITTER}", 0.004, 0.004),
    ]
    load = found(tmp_path, timed)[0]
    assert (load.stage, load.name) == ("decode", "PIL.ImageFile.ImageFile.load")
    assert load.cpu_s == pytest.approx(0.034)


def test_a_users_own_function_is_named_where_it_is_defined(tmp_path: Path) -> None:
    (own, *_) = found(tmp_path, [("__main__.features@/home/me/train.py:12", 0.03, 0.03)])
    assert (own.name, own.where, own.place) == ("features", "train.py:12", "/home/me/train.py:12")


def test_putting_timers_in_place_is_no_operators_work(tmp_path: Path) -> None:
    """It is in the thread's CPU time of a batch, not between its clock readings."""
    made = Made(tmp_path / "r")
    fetch = Fetch(cpu=0.04, blocked=-0.02, operators=[("json.loads", 0.018, 0.018)])
    made.finish(made.loop(made.process(), Plan(wait=0.02, fetch=fetch)))
    recording = made.read()
    (loop,) = build(recording).loops
    assert sum(each.cpu_s for each in operators.of_fetching(recording, loop)) <= 0.0201


@pytest.mark.parametrize(
    ("dotted", "name"),
    [
        ("torchvision.transforms.v2._misc.GaussianBlur.forward", "GaussianBlur"),
        ("albumentations.augmentations.pixel.transforms.Normalize.apply", "Normalize"),
        ("torchvision.datasets.folder.default_loader", "default_loader"),
        ("datasets.arrow_dataset.Dataset.__getitem__", "Dataset"),
        ("__main__.Collator.__call__", "Collator"),
        ("", ""),
    ],
)
def test_what_a_line_calls_to_make_it(dotted: str, name: str) -> None:
    assert made_as(dotted) == name


@pytest.mark.slow
def test_two_loaders_of_one_process_keep_their_operators_apart(tmp_path: Path) -> None:
    # Every batch but the first of each epoch is timed in depth.
    environment = {**os.environ, "LOADERPROF_DEPTH_PERIOD_NS": "0"}
    command = [sys.executable, "-m", "loaderprof", "run", "--no-html", "-o", str(tmp_path / "seen"), str(TWO_LOADERS)]
    subprocess.run(command, env=environment, capture_output=True, timeout=100, check=False)
    seen = recording.read(tmp_path / "seen")
    loops = {loop.facts.dataset.rpartition(".")[2]: loop for loop in build(seen).loops}
    for dataset, own, other in (("Photos", "photo", "table"), ("Tables", "table", "photo")):
        names = {each.name.rpartition(".")[2] for each in operators.of_fetching(seen, loops[dataset])}
        assert own in names
        assert other not in names
        # Five epochs of three batches, the first of each not timed: so many batches, each of four samples.
        rows = operators.rows_of(seen, loops[dataset])
        calls = rows["calls"][[seen.texts[name].partition("@")[0].endswith(own) for name in rows["name"]]]
        assert calls.sum() / operators.batches_of(rows) == 4
        assert operators.batches_of(rows) == 10

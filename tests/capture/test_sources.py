"""What is kept of the user's sources: the lines that make operators, in the files that a run is known to use."""

from __future__ import annotations

from pathlib import Path

from loaderprof.analyze.loop_side import TRAINING
from loaderprof.capture.sources import lines_of, lines_that_make, lines_with

TRAIN = """
import augment
from package.more import build
import torchvision.transforms.v2 as v2
from monai.transforms import Compose as Chain

pipeline = Chain([v2.GaussianBlur(5), v2.Resize(3),
                  v2.Resize(4)])
rows = (
    datasets
    .Dataset.from_dict({})
    .with_format("torch")
)
"""


def test_lines_that_make(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "augment.py").write_text("def f():\n    return A.ElasticTransform(\n        p=1)\n")
    (tmp_path / "package" / "more.py").write_text("class Warp: ...\nbuild = lambda: Warp()\n")
    (tmp_path / "beside.py").write_text("Unrelated()\n")
    names = {"GaussianBlur", "Resize", "Compose", "Dataset", "ElasticTransform", "Warp", "Unrelated"}
    found = lines_that_make(names, [str(tmp_path / "train.py"), "/nowhere/gone.py"])
    assert {name: line.removeprefix(f"{tmp_path}/") for name, line in found.items()} == {
        "GaussianBlur": "train.py:7",
        "Compose": "train.py:7",
        "Dataset": "train.py:11",
        "ElasticTransform": "augment.py:2",
        "Warp": "package/more.py:2",
    }


def test_what_is_no_python_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "bytes.py").write_bytes(b"\x00\xff")
    assert lines_that_make({"f"}, map(str, tmp_path.glob("*.py"))) == {}


def test_lines_of_the_users_own_files(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("one = 1\n  two = 2\n")
    frames = [f"f ({tmp_path}/train.py:2)", "g (/usr/lib/python3/site-packages/x.py:1)", "h (<string>:1)"]
    assert lines_of(frames) == {f"{tmp_path}/train.py:2": "two = 2"}


def test_lines_that_train(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("for x in loader:\n    scaler.scale(loss).backward()  # here\n    step()\n")
    (tmp_path / "other.py").write_text("backward = 1\n")
    files = [*map(str, tmp_path.glob("*.py")), "/nowhere/gone.py", str(tmp_path)]
    assert lines_with(TRAINING, files) == {f"{tmp_path}/train.py:2": "scaler.scale(loss).backward()  # here"}

"""What a dataset is seen to hold, and what a real run lists as its risks."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loaderprof.capture.hooks import dataset


class Holder:
    """Stands for a dataset."""

    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)


def found(held: Any, iterable: bool = False, split: bool = False) -> dict[str, Any]:
    return dataset.facts(held, iterable, split)


@pytest.mark.parametrize(
    ("held", "path"),
    [
        ({"root": "/data/train"}, "/data/train"),
        ({"inner": Holder(files=["images/0.jpg", "images/1.jpg"])}, "images/0.jpg"),
        ({"where": Path("/data/train.h5")}, "/data/train.h5"),
        ({"index": {"a": ("x/y.bin", 3)}}, "x/y.bin"),
        ({"url": "s3://user:secret@bucket/key?token=abc"}, "s3://***@bucket/key"),
        ({"text": "either/or is no path", "number": 3}, None),
        ({}, None),
    ],
)
def test_the_first_path_that_a_dataset_holds(held: dict[str, Any], path: str | None) -> None:
    assert found(Holder(**held))["path"] == path


def test_a_handle_in_a_dataset_is_named(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a.db") as database:
        assert found(Holder(inner=Holder(database=database)))["handle"] == "sqlite3.Connection"
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        assert found(Holder(file=file))["handle"] == "h5py.File"
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "lmdb")) as environment:
        assert found(Holder(environment=environment))["handle"] == "lmdb.Environment"
    assert found(Holder(path=tmp_path))["handle"] is None


class Compose(Holder):
    """Stands for a library's chain of transforms."""


class ToTensor:
    """Stands for one of them."""


def test_a_chain_of_transforms_is_named_in_its_order() -> None:
    chain = Compose(transforms=[ToTensor(), Holder()])
    assert found(Holder(inner=Holder(transform=chain)))["transforms"] == "ToTensor, Holder"
    assert found(Holder(transforms=[ToTensor()]))["transforms"] is None
    assert found(Holder(transform=Compose(transforms="ab")))["transforms"] is None


def helper() -> int:
    from torch.utils.data import get_worker_info

    return 0 if get_worker_info() is None else 1


class Whole:
    def __iter__(self) -> Any:
        yield from range(10)


class Split:
    def __iter__(self) -> Any:
        yield from (number for number in range(10) if number % 2 == self.part())

    def part(self) -> int:
        from torch.utils.data import get_worker_info

        return 0 if get_worker_info() is None else 1


class SplitElsewhere:
    def __iter__(self) -> Any:
        yield helper()


class Heir(Split):
    def __iter__(self) -> Any:
        return super().__iter__()


def test_a_stream_that_asks_which_worker_it_is_in() -> None:
    assert found(Whole(), True)["splits"] is False
    assert [found(kind(), True)["splits"] for kind in (Split, SplitElsewhere, Heir)] == [True, True, True]
    assert found(Whole(), True, split=True)["splits"] is True
    assert found(Whole())["splits"] is None


def test_shards_of_a_stream_are_counted() -> None:
    assert found(Holder(inner=Holder(urls=["a.tar", "b.tar"])), True)["shards"] == 2
    assert found(Holder(urls=["a.tar"]))["shards"] is None


def test_an_object_that_resists_is_left_alone() -> None:
    class Resists:
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError(name)

    assert found(Holder(a=Resists(), root="/data/x"))["path"] == "/data/x"


SCRIPT = """
import os, sys, h5py, numpy as np, torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

with h5py.File("rows.h5", "w") as file:
    file["rows"] = np.zeros((64, 4), np.float32)

class Rows(Dataset):
    def __init__(self):
        self.file = h5py.File("rows.h5")
    def __len__(self):
        return 64
    def __getitem__(self, index):
        return self.file["rows"][index]

class Stream(IterableDataset):
    def __init__(self):
        self.shards = ["a.bin", "b.bin"]
    def __iter__(self):
        for number in range(24):
            yield torch.full((4,), number)

for batch in DataLoader(Rows(), batch_size=8, num_workers=2, multiprocessing_context="fork"):
    pass
many = DataLoader(Stream(), batch_size=4, num_workers=3, multiprocessing_context="fork")
print(sum(len(batch) for batch in many))
"""


@pytest.mark.slow
def test_a_real_run_lists_its_risks_and_their_truth(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "loaderprof", "run", "--no-html", "-o", "out", "train.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert done.stdout == "72\n"  # three times the 24 samples: what the risk says
    risks = {risk["id"]: risk for risk in json.loads((tmp_path / "out/findings.json").read_text())["risks"]}
    assert risks["handle-before-fork"]["value"] == 2
    assert risks["duplicated-stream"]["value"] == 3
    assert (risks["few-shards"]["value"], risks["few-shards"]["limit"]) == (2, 3)
    assert risks["main-guard"]["value"] in (2, 3)

"""TensorFlow is the job's: never imported by us, and pipelines of another shape than the known one are left alone."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loaderprof.capture import launch
from loaderprof.capture.hooks import tf_facts, tf_pipeline, tf_settings

TRAIN = """
import sys
import torch
from torch.utils.data import DataLoader

for batch in DataLoader(list(range(8)), batch_size=2):
    pass
print([name for name in sys.modules if name.startswith(("tensorflow", "loaderprof.capture.tf"))])
"""
# A TensorFlow that tells whoever imports it.
LOUD = "from pathlib import Path\nPath(__file__).with_name('imported').touch()\n"


def test_a_torch_job_never_imports_tensorflow(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "journals").mkdir()
    package = tmp_path / "site" / "tensorflow"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(LOUD)
    base = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")))}
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        env=launch.job_environment(tmp_path / "journals", {"tf.prefetch": 2}, base),
    )
    assert done.stdout == "[]\n"
    assert done.stderr == ""
    assert list((tmp_path / "journals").glob("*.lpj"))
    assert not (package / "imported").exists()


class Context:
    """Stands in for TensorFlow's, which says whether code runs eagerly."""

    @staticmethod
    def executing_eagerly() -> bool:
        return True


def test_iterators_of_another_shape_still_give_what_they_gave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class OwnedIterator:
        def _create_iterator(self, dataset: Any) -> None:
            self.items = iter(dataset)

        def __next__(self) -> Any:
            return next(self.items)

        get_next = __next__

    module = types.ModuleType(tf_pipeline.ITERATORS)
    module.OwnedIterator, module.context = OwnedIterator, Context  # type: ignore[attr-defined]
    monkeypatch.setattr(tf_pipeline.process, "off", False)
    monkeypatch.setattr(tf_pipeline.process, "directory", str(tmp_path))
    said: list[str] = []
    monkeypatch.setattr(tf_pipeline, "stand_aside", lambda error: said.append(str(error)))
    tf_pipeline.patch(module)
    iterator = OwnedIterator()
    iterator._create_iterator([1, 2])
    assert [next(iterator), iterator.get_next()] == [1, 2]
    assert said
    with pytest.raises(StopIteration):
        next(iterator)


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        ("tf.cache", True, True),
        ("tf.cache", False, False),
        ("tf.prefetch", "AUTOTUNE", True),
        ("tf.prefetch", 2, True),
        ("tf.prefetch", 0, False),
        ("tf.num_parallel_calls", True, False),
        ("tf.num_parallel_calls", "many", False),
        ("tf.private_threadpool_size", "AUTOTUNE", False),
    ],
)
def test_values_of_settings(key: str, value: object, fits: bool) -> None:
    assert tf_settings.fits(key, value) == fits


def test_settings_are_applied_where_pipelines_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dataset:
        def map(self, function: Any, num_parallel_calls: Any = None) -> Any:
            return num_parallel_calls

        def interleave(
            self, function: Any, cycle: Any = None, block: Any = None, num_parallel_calls: Any = None
        ) -> Any:
            return num_parallel_calls

        def prefetch(self, size: int) -> tuple[str, int]:
            return "prefetched", size

    monkeypatch.setenv(
        "LOADERPROF_SET", json.dumps({"tf.num_parallel_calls": "AUTOTUNE", "tf.prefetch": 3, "num_workers": 2})
    )
    tf_settings.install(Dataset)
    dataset = Dataset()
    assert [dataset.map(abs), dataset.map(abs, 4), dataset.map(abs, num_parallel_calls=4)] == [-1, -1, -1]
    assert [dataset.interleave(abs), dataset.interleave(abs, 2, 1, 4)] == [-1, -1]
    assert tf_settings.finished(dataset) == ("prefetched", 3)
    assert tf_settings.wanted() == {"num_parallel_calls": "AUTOTUNE", "prefetch": 3}


def drawn(number: int) -> float:
    return random.random() + number


def plain(number: int) -> float:
    return abs(number)


@pytest.mark.parametrize(
    ("function", "types", "random_"),
    [
        (lambda number: drawn(number), {"EagerPyFunc"}, True),
        (lambda number: plain(number), {"EagerPyFunc"}, False),
        (plain, {"RandomUniform"}, True),
        (plain, {"StatelessRandomUniformV2", "Mul"}, False),
        (plain, {"GeneratorDataset"}, True),
    ],
)
def test_what_may_be_random_is_not_cached(
    monkeypatch: pytest.MonkeyPatch, function: Any, types: set[str], random_: bool
) -> None:
    monkeypatch.setattr(tf_facts, "_types", lambda _: types)
    assert tf_facts.is_random(SimpleNamespace(_func=function)) == random_

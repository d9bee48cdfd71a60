"""TensorFlow is the job's: never imported by us, and pipelines of another shape than the known one are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from loaderprof.capture import launch
from loaderprof.capture.hooks import tf_pipeline

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

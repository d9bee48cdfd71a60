"""Loaders whose batches come out of a generator: what the loop sees is the same, and what it waits for is recorded.

The module stands in for Ray's, in its shape; Ray itself runs in tests/libraries.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loaderprof.capture.hooks import other_generators, process
from loaderprof.recording import files, reader


class Batches:
    def __init__(self, make: Callable[[], Iterator[int]]) -> None:
        self.iterator_gen = make

    def __iter__(self) -> Iterator[int]:
        return self.iterator_gen()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    """A patched module of Ray's shape, whose generator tells how it ended, in a process that knows of a recording."""
    monkeypatch.setenv("LOADERPROF_JOURNALS", str(tmp_path / "journals"))
    (tmp_path / "journals").mkdir()
    monkeypatch.setattr(process, "_said", bytearray(1))
    monkeypatch.setattr(process.process, "__dict__", vars(process.JobProcess()))
    module = types.ModuleType(other_generators.RAY)
    module.ended = []  # type: ignore[attr-defined]

    class DataIterator:
        def _iter_batches(self, *, fails_at: int = -1, **_: Any) -> Batches:
            def make() -> Iterator[int]:
                try:
                    for number in range(5):
                        if number == fails_at:
                            raise ValueError("the user's own")
                        yield number
                finally:
                    module.ended.append(True)  # type: ignore[attr-defined]

            return Batches(make)

    module.DataIterator = DataIterator  # type: ignore[attr-defined]
    other_generators.patch(module)
    return module


def taken(folder: Path) -> tuple[int, int]:
    """Return how many batches, and how many ends of epochs, were recorded."""
    files.write_meta(folder, {})
    tables = reader.read(folder).tables
    return int(tables["take"]["count"].sum()), len(tables["end"])


def test_each_epoch_is_recorded_with_its_settings(ray: types.ModuleType, tmp_path: Path) -> None:
    batches = ray.DataIterator()._iter_batches(prefetch_batches=0, batch_size=8)
    assert [list(batches), list(batches)] == [[0, 1, 2, 3, 4]] * 2
    assert isinstance(iter(batches), types.GeneratorType)
    assert taken(tmp_path) == (10, 2)
    assert any('"prefetch_batches": 0' in text and '"framework": "ray"' in text for text in reader.read(tmp_path).texts)


def test_a_loop_that_breaks_off_ends_what_runs_behind(ray: types.ModuleType, tmp_path: Path) -> None:
    batches = iter(ray.DataIterator()._iter_batches())
    assert next(batches) == 0
    assert not ray.ended
    batches.close()
    assert ray.ended == [True]
    assert taken(tmp_path) == (1, 0)


def test_errors_of_the_users_pass_through(ray: types.ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the user's own"):
        list(ray.DataIterator()._iter_batches(fails_at=2))
    assert ray.ended == [True]
    assert taken(tmp_path) == (2, 1)


def test_nothing_is_recorded_without_a_recording(ray: types.ModuleType, tmp_path: Path) -> None:
    process.process.off = True
    assert list(ray.DataIterator()._iter_batches()) == [0, 1, 2, 3, 4]
    assert not os.listdir(tmp_path / "journals")


@pytest.mark.parametrize("name", [other_generators.RAY, other_generators.MONAI])
def test_a_module_of_another_shape_is_left_alone(name: str) -> None:
    module = types.ModuleType(name)
    before = dict(vars(module))
    other_generators.patch(module)
    assert vars(module) == before

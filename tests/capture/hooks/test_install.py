"""Hooks and timers by themselves: what they leave untouched, and what they do when torch is not the torch they know."""

from __future__ import annotations

import copy
import functools
import inspect
import os
import pickle
import signal
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import data as torch_data

from loaderprof.capture.hooks import describe, discover, install, iterators, process
from loaderprof.capture.hooks.timers import Timers
from loaderprof.recording import files, reader
from loaderprof.recording import journal as layout


def double(value: int) -> int:
    return value * 2


def deep(left: int) -> int:
    return 0 if left == 0 else 1 + deep(left - 1)


def shown(value: int) -> int:
    warnings.warn("outdated", UserWarning, stacklevel=2)
    return value


class Plain:
    """A dataset that holds functions in every way they can be held."""

    factor = 3

    def __init__(self) -> None:
        self.function: Callable[[int], int] = double
        self.listed: list[Callable[[int], int]] = [double]
        self.keyed = {double: "double"}
        self.partial = functools.partial(double)
        self.loads = pickle.loads
        self.hidden = (lambda held: lambda value: held(value))(double)

    def __getitem__(self, index: int) -> int:
        return self.listed[0](self.function(index)) + self.static(index) + self.partial(index) + self.hidden(index)

    @staticmethod
    def static(value: int, *, more: int = 1) -> int:
        return value + more

    def __setattr__(self, name: str, value: Any) -> None:
        assert not sys._getframe(1).f_code.co_filename.endswith("timed.py")
        object.__setattr__(self, name, value)


@pytest.fixture
def plain() -> Plain:
    return Plain()


def test_what_is_timed_stays_itself(plain: Plain) -> None:
    before = dict(vars(plain)), dict(vars(Plain)), double.__code__
    with Timers(plain, None) as table:
        assert plain[5] == 20 + 6 + 10 + 10
        assert plain.function is double
        assert plain.keyed[plain.function] == "double"
        assert pickle.loads(pickle.dumps([plain.function, plain.listed])) == [double, [double]]
        assert pickle.loads(pickle.dumps(plain.loads)) is not None
        assert copy.deepcopy(plain.listed) == [double]
        assert list(inspect.signature(Plain.static).parameters) == ["value", "more"]
        assert isinstance(plain.function, types.FunctionType)
    assert (dict(vars(plain)), dict(vars(Plain)), double.__code__) == before
    assert not vars(double)
    calls = {name.split("@")[0].removeprefix(f"{__name__}."): row[0] for name, row in table.rows.items()}
    assert calls["double"] == 4
    assert calls["Plain.__getitem__"] == calls["Plain.static"] == 1


def test_what_the_user_puts_meanwhile_stays(plain: Plain) -> None:
    with Timers(plain, None):
        plain.loads = pickle.dumps  # type: ignore[assignment]
        plain.listed.insert(0, shown)
    assert plain.loads is pickle.dumps
    assert plain.listed == [shown, double]


def test_a_stand_in_that_was_kept_is_harmless(plain: Plain) -> None:
    with Timers(plain, None) as table:
        kept = plain.loads
    rows = {name: list(row) for name, row in table.rows.items()}
    assert kept(pickle.dumps(4)) == 4
    assert {name: list(row) for name, row in table.rows.items()} == rows
    assert kept == pickle.loads
    assert hash(kept) == hash(pickle.loads)


def test_two_timed_at_once(plain: Plain) -> None:
    """Threads may overlap: whoever ends last leaves nothing of ours behind."""
    code = double.__code__
    first, second = Timers(plain, None), Timers(plain, None)
    first.__enter__()
    second.__enter__()
    first.__exit__()
    assert plain[1] == 4 + 2 + 2 + 2
    second.__exit__()
    assert double.__code__ is code
    assert plain.loads is pickle.loads


def test_recursion_goes_as_deep_as_before() -> None:
    class Recursive:
        def __getitem__(self, index: int) -> int:
            return deep(index)

    depth = sys.getrecursionlimit() - len(inspect.stack()) - 60
    with Timers(Recursive(), None):
        assert Recursive()[depth] == depth


def test_warnings_name_the_caller() -> None:
    class Warns:
        def __getitem__(self, index: int) -> int:
            return shown(index)

    def caught() -> tuple[str, int]:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            Warns()[1]
        return seen[0].filename, seen[0].lineno

    bare = caught()
    with Timers(Warns(), None):
        assert caught() == bare
    assert bare[0] == __file__


class Loud(dict):  # type: ignore[type-arg]
    """Fails when touched by anything but the plain methods of dict."""

    def values(self) -> Any:
        raise AssertionError("values() was called")

    items = __iter__ = keys = values


class Proxy:
    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


def test_no_code_of_the_users_runs(plain: Plain) -> None:
    plain.odd = [Loud(a=double), Proxy()]  # type: ignore[attr-defined]
    with Timers(plain, None):
        assert plain[0] == 1
    assert describe.size([Loud(a=b"12"), Proxy(), (b"3", "4")]) == (4, 0, 4, 0)


def test_floats_of_a_batch_are_counted() -> None:
    floats, bytes_ = torch.zeros(6), torch.zeros(5, dtype=torch.uint8)
    assert describe.size({"image": floats, "more": (bytes_, np.zeros(2, np.float64), np.zeros(1, np.int64))}) == (
        53,
        4,
        4,
        40,
    )


def test_locals_are_not_kept() -> None:
    """What a function deletes goes at once, though its variables were looked at."""

    class Item:
        pass

    gone: list[str] = []

    def user() -> None:
        mine = Item()
        import weakref

        weakref.finalize(mine, gone.append, "mine")
        frame = sys._getframe()
        assert describe._held_by(frame, mine) in (None, "mine")
        del mine
        assert gone == ["mine"]

    user()


def test_locals_given_to_the_user_are_left_alone() -> None:
    def user() -> dict[str, Any]:
        first = 1
        mine = locals()
        second = object()
        describe._held_by(sys._getframe(), second)
        return mine if first else {}

    assert sorted(user()) == ["first"]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Hooks that know of no recording yet, in a process that has said nothing yet."""
    monkeypatch.setenv("LOADERPROF_JOURNALS", str(tmp_path))
    monkeypatch.setattr(process, "_said", bytearray(1))
    monkeypatch.setattr(process.process, "__dict__", vars(process.JobProcess()))
    return tmp_path


@pytest.mark.parametrize("missing", ["_MultiProcessingDataLoaderIter", "_next_data", "_utils", "fetch"])
def test_an_unknown_torch(fresh: Path, capsys: pytest.CaptureFixture[str], missing: str) -> None:
    """Hooks stand aside with one line, and have replaced nothing."""

    class Base:
        def _next_index(self) -> None: ...

    class Single(Base):
        def __init__(self) -> None: ...
        def _next_data(self) -> None: ...

    class Several(Single):
        def __init__(self) -> None: ...
        def _next_data(self) -> None: ...
        def _reset(self) -> None: ...

    class Fetcher:
        def fetch(self) -> None: ...

    names: dict[str, Any] = {
        "_BaseDataLoaderIter": Base,
        "_SingleProcessDataLoaderIter": Single,
        "_MultiProcessingDataLoaderIter": Several,
        "_utils": types.SimpleNamespace(
            fetch=types.SimpleNamespace(_MapDatasetFetcher=Fetcher, _IterableDatasetFetcher=Fetcher),
            worker=types.SimpleNamespace(_worker_loop=double),
            pin_memory=types.SimpleNamespace(_pin_memory_loop=double),
        ),
    }
    if missing == "_next_data":
        del Several._next_data
    elif missing == "fetch":
        del Fetcher.fetch
    else:
        del names[missing]
    module = types.ModuleType(install.TORCH)
    vars(module).update(names)
    before = {cls: dict(vars(cls)) for cls in (Base, Single, Several, Fetcher)}
    real = sys.modules.get(install.TORCH)
    sys.modules[install.TORCH] = module
    try:
        install.patch(install.TORCH)
    finally:
        sys.modules.pop(install.TORCH)
        if real is not None:
            sys.modules[install.TORCH] = real
    assert {cls: dict(vars(cls)) for cls in before} == before
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("loaderprof: capture stopped, training goes on: ")
    assert missing in lines[0]
    assert not os.listdir(fresh)


class Loader:
    """As much of a loader as is described."""

    def __init__(self, batch_size: int) -> None:
        self.dataset: list[int] = []
        self.batch_size = batch_size


class Drawing(torch_data.Sampler[Any]):
    """Draws one index, or one batch of one."""

    def __init__(self, batches: bool) -> None:
        self.drawn: list[Any] = [[0]] if batches else [0]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.drawn)


@pytest.mark.parametrize(
    ("more", "told"),
    [({"batch_sampler": Drawing(True)}, True), ({"sampler": Drawing(False)}, True), ({"shuffle": True}, False)],
)
def test_the_line_of_the_users_sampler_is_told(more: dict[str, Any], told: bool) -> None:
    loader = torch_data.DataLoader([0, 1], **more)  # type: ignore[arg-type]
    line = Drawing.__iter__.__code__.co_firstlineno
    assert describe.loader(loader, iter(loader))["sampler_where"] == (f"{__file__}:{line}" if told else None)


def test_a_loader_of_an_installed_program_has_the_programs_name_for_it() -> None:
    program = """
def inner(data): return look(data)
def fit(train_loader): return inner(train_loader)
def main(): return fit(object())
"""
    names: dict[str, Any] = {"look": describe.name_and_place}
    exec(compile(program, "/opt/lib/site-packages/program.py", "exec"), names)
    name, where = names["main"]()
    assert name == "train_loader"
    assert where is not None
    assert where.startswith(f"{__file__}:"), "the line of the user's that runs it"


def test_a_loader_in_the_place_of_another_is_described_anew(fresh: Path) -> None:
    journal = process.process.open()
    assert journal is not None
    first = Loader(4)
    number = process.process.loader(journal, first, None)
    assert process.process.loader(journal, first, None) == number
    other = Loader(4)
    assert process.process.loader(journal, other, None) != number, "two at once are two"
    for _ in range(50):
        del other
        other = Loader(8)
        last = process.process.loader(journal, other, None)
    assert last not in (number, 0)
    assert len(process.process.loaders) == 2
    assert last <= 4, "those that took each other's place are one"


def test_a_journal_takes_few_descriptors(fresh: Path) -> None:
    journal = process.process.open()
    assert journal is not None
    before = len(os.listdir("/proc/self/fd"))
    for number in range(100_000):
        journal.write(layout.PAUSE, 0, 0, number, number + 1, 0)
    assert len(os.listdir("/proc/self/fd")) - before <= 9


def test_a_long_command_line_fits_the_header(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x" * 400] * 60)
    assert process.process.open() is not None
    (fresh / "journals").mkdir()
    for file in fresh.glob("*.lpj"):
        file.rename(fresh / "journals" / file.name)
    files.write_meta(fresh, {})
    seen = reader.read(fresh)
    assert [process.pid for process in seen.processes] == [os.getpid()]
    assert seen.notes == []


def test_a_watched_iterable_that_raises(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Raises:
        asked = 0

        def __iter__(self) -> Any:
            self.asked += 1
            raise ValueError("the user's own")

    raises = Raises()
    with pytest.raises(ValueError, match="the user's own"):
        iterators.Watched.begin(raises, "x")
    assert raises.asked == 1
    assert capsys.readouterr().err == ""


def test_discovery_reads_modules_as_they_are() -> None:
    """A lazy module imports nothing because we looked for a function of it."""

    class Lazy(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} was asked for")

    sys.modules["simplejpeg"] = Lazy("simplejpeg")
    try:
        discover.discover(Plain(), None)
    finally:
        del sys.modules["simplejpeg"]


def test_a_workers_dataset_is_found_under_either_of_torchs_names() -> None:
    from loaderprof.capture.hooks.workers import _loop_arguments

    def given_itself(dataset_kind: int, dataset: Any, data_queue: Any, collate_fn: Any, worker_id: int) -> None: ...

    def given_a_holder(
        dataset_kind: int, dataset_holder: Any, data_queue: Any, collate_fn: Any, worker_id: int
    ) -> None: ...

    holder, rest = ["data"], ("queue", "collate", 3)
    assert _loop_arguments(given_itself, (0, "data", *rest), {}) == ("data", "collate", "queue", 3)
    assert _loop_arguments(given_a_holder, (0, holder, *rest), {}) == ("data", "collate", "queue", 3)
    # The worker takes it out itself.
    assert holder == ["data"]


def test_what_a_signal_handler_raises_while_we_run_is_the_jobs(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def handler(number: int, frame: Any) -> None:
        raise TimeoutError("the job's own")

    before = signal.signal(signal.SIGUSR1, handler)
    install.begin(str(fresh))
    try:
        batches = iter(torch_data.DataLoader([1, 2, 3]))
        assert next(batches).tolist() == [1]
        with pytest.MonkeyPatch.context() as patch:
            # Asked in the midst of a stamp.
            patch.setattr(describe, "gradients", lambda: signal.raise_signal(signal.SIGUSR1) or 0)
            with pytest.raises(TimeoutError, match="the job's own"):
                next(batches)
        assert next(batches).tolist() == [3]
        assert not process.process.off
    finally:
        install.end()
        signal.signal(signal.SIGUSR1, before)
    assert capsys.readouterr().err == ""

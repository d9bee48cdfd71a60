"""Stand-ins that time functions for the length of a batch: what they leave untouched."""

from __future__ import annotations

import copy
import inspect
import pickle
import types
import warnings

import pytest
from odd_datasets import Plain, double, shown

from loaderprof.capture.hooks.timers import Timers


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
    calls = {name.split("@")[0].removeprefix(f"{Plain.__module__}."): row[0] for name, row in table.rows.items()}
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

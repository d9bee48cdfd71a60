"""What discovery finds of an input pipeline, and what it must not do on the way."""

from __future__ import annotations

import inspect
import sys
import types
from typing import Any

from odd_datasets import Loud, Plain, Proxy, double

from loaderprof.capture.hooks import discover
from loaderprof.capture.hooks.timers import Timers


def deep(left: int) -> int:
    return 0 if left == 0 else 1 + deep(left - 1)


def test_recursion_goes_as_deep_as_before() -> None:
    class Recursive:
        def __getitem__(self, index: int) -> int:
            return deep(index)

    depth = sys.getrecursionlimit() - len(inspect.stack()) - 60
    with Timers(Recursive(), None):
        assert Recursive()[depth] == depth


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


def test_discovery_runs_no_code_of_the_users() -> None:
    plain = Plain()
    plain.odd = [Loud(a=double), Proxy()]  # type: ignore[attr-defined]
    with Timers(plain, None):
        assert plain[0] == 1

"""Datasets that hold functions and objects in unusual ways, for tests of what finds and times them."""

from __future__ import annotations

import functools
import pickle
import sys
import warnings
from collections.abc import Callable
from typing import Any


def double(value: int) -> int:
    return value * 2


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
        assert not sys._getframe(1).f_code.co_filename.endswith("/hooks/stand_ins.py")
        object.__setattr__(self, name, value)


class Loud(dict):  # type: ignore[type-arg]
    """Fails when touched by anything but the plain methods of dict."""

    def values(self) -> Any:
        raise AssertionError("values() was called")

    items = __iter__ = keys = values


class Proxy:
    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")

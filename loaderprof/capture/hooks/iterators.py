"""The main process: hooks in torch's iterators, which record when its loops ask for a batch and when they have it.

What one iterator records is in `iteration`. Standard library only, Python >= 3.8: every worker imports this.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from loaderprof.capture.hooks.frames import unseen
from loaderprof.capture.hooks.iteration import Iteration, write_end
from loaderprof.capture.hooks.process import INDEX, close_account, open_account, process, stand_aside

_NOW = time.perf_counter_ns
_CPU = time.thread_time_ns
_IDENT = threading.get_ident


@unseen
def iterator_init(original: Any) -> Any:
    def __init__(self: Any, loader: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        begun, cpu, outer, spent = _NOW(), _CPU(), *open_account()
        process.resting = process.rests()
        try:
            original(self, loader, *args, **kwargs)
        except BaseException as error:
            _failed(begun, error)
            raise
        finally:
            close_account(outer)
        if process.off or "_loaderprof" in self.__dict__ or _is_ahead(loader):
            return
        try:
            self._loaderprof = Iteration(self, loader, begun, _CPU() - cpu, spent[INDEX])
        except Exception as error:
            stand_aside(error)

    return __init__


def _is_ahead(loader: Any) -> bool:
    generators = sys.modules.get("loaderprof.capture.hooks.other_generators")
    return generators is not None and generators.is_ahead(loader)


@unseen
def reset(original: Any) -> Any:
    def _reset(self: Any, loader: Any, first_iter: bool = False, *args: Any, **kwargs: Any) -> Any:
        if first_iter:
            return original(self, loader, first_iter, *args, **kwargs)
        begun, cpu, outer, spent = _NOW(), _CPU(), *open_account()
        try:
            result = original(self, loader, first_iter, *args, **kwargs)
        finally:
            close_account(outer)
        iteration = self.__dict__.get("_loaderprof")
        if iteration is not None and not process.off:
            try:
                iteration.restarted(begun, _CPU() - cpu, spent[INDEX])
            except Exception as error:
                stand_aside(error)
        return result

    return _reset


@unseen
def next_data(original: Any) -> Any:
    def _next_data(self: Any) -> Any:
        iteration = self.__dict__.get("_loaderprof")
        if iteration is None:
            return original(self)
        # Most batches of a quick loop take this path, so it is written out here without further calls. An iterator
        # inherited over a fork, or used after capture has ended, keeps summing until `until`; nobody writes the sum.
        asked = _NOW()
        if asked >= iteration.until or process.step is not None:
            if process.off or iteration.journal is not process.journal:
                return original(self)
            return iteration.take(self, original)
        try:
            data = original(self)
        except BaseException as error:
            iteration.ended(asked, error)
            raise
        iteration.t_last = taken = _NOW()
        iteration.wait_ns += taken - asked
        iteration.count += 1
        return data

    return _next_data


@unseen
def next_index(original: Any) -> Any:
    def _next_index(self: Any) -> Any:
        spent = process.spending.get(_IDENT()) if process.spending else None
        if spent is None:
            return original(self)
        begun = _NOW()
        try:
            return original(self)
        finally:
            spent[INDEX] += _NOW() - begun

    return _next_index


def _failed(begun: int, error: BaseException) -> None:
    """Note that no iterator could be made."""
    try:
        journal = process.open()
        if journal is not None:
            write_end(journal, 0, begun, error)
    except Exception as failure:
        stand_aside(failure)

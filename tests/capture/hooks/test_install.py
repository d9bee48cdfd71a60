"""What the hooks do when torch is not the torch they know."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from loaderprof.capture.hooks import install


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
            worker=types.SimpleNamespace(_worker_loop=len),
            pin_memory=types.SimpleNamespace(_pin_memory_loop=len),
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

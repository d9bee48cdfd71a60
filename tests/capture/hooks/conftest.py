"""A process whose hooks know of no recording yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from loaderprof.capture.hooks import process


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Hooks that know of no recording yet, in a process that has said nothing yet."""
    monkeypatch.setenv("LOADERPROF_JOURNALS", str(tmp_path))
    monkeypatch.setattr(process, "_said", bytearray(1))
    monkeypatch.setattr(process.process, "__dict__", vars(process.JobProcess()))
    return tmp_path

"""What `recording.json` says: typed for whoever reads it, and written again as it was."""

from __future__ import annotations

import json
from pathlib import Path

from made import Made

from loaderprof.recording import files, reader
from loaderprof.recording.meta import CpuBudgetFacts, JobFacts, WatchedMain, updated


def test_what_is_written_again_keeps_all_that_this_version_does_not_know(tmp_path: Path) -> None:
    folder = Made(tmp_path / "r", future={"a": [1, None]}, signal=None, host=7).finish()
    before = json.loads((folder / files.META).read_text())
    seen = reader.read(folder)
    assert seen.notes == ["recording.json: host is damaged and was left out"]
    seen.meta = updated(seen.meta, sources={"train.py:1": "x"}, made_at={"Images": "train.py:2"})
    assert seen.meta.sources == {"train.py:1": "x"}
    files.write_meta(folder, seen.meta.written)
    del before["host"]
    after = json.loads((folder / files.META).read_text())
    assert after == {**before, "sources": {"train.py:1": "x"}, "made_at": {"Images": "train.py:2"}}
    assert list(after) == [*before, "sources", "made_at"]


def test_what_is_damaged_within_a_part_is_as_if_it_was_not_recorded(tmp_path: Path) -> None:
    budget = {"cores": "8", "logical": 4, "affinity": -1, "more": 1}
    mains = [{"pid": 11, "rank": 3}, 7, {"pid": "12", "rank": 0}]
    made = Made(tmp_path / "r", attach={"mains": mains, "torch": ["2.7"]}, job={"launcher": True, "settings": [1]})
    made.meta["cpu_budget"] = budget
    meta = made.read().meta
    assert meta.cpu_budget == CpuBudgetFacts(logical=4)
    assert list(meta.attach.mains) == [WatchedMain(11, 3), WatchedMain(None, 0)]
    assert meta.attach.torch is None
    assert meta.job == JobFacts(launcher=True)
    assert meta.written["cpu_budget"] == budget


def test_what_was_not_recorded_is_none_or_empty(tmp_path: Path) -> None:
    files.write_meta(tmp_path, {})
    meta = reader.read(tmp_path).meta
    assert (meta.job, meta.cpu_budget.cores, meta.missing.gpu) == (None, None, None)
    assert (meta.sources, meta.gpus, meta.written) == ({}, (), {"format": files.FORMAT})

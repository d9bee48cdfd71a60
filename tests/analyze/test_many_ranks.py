"""Recordings of many ranks: the one that waits the most is told as in a whole reading, and all are counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.many_ranks import Job, make
from golden_sentences import Check
from made import Made

from loaderprof.analyze import many_ranks
from loaderprof.commands import check, compare
from loaderprof.conclude import findings_of
from loaderprof.findings import Findings
from loaderprof.recording import files, reader
from loaderprof.recording.reader import Recording

JOB = Job(ranks=32, steps=60, slow=21)
TEN = Job(ranks=10, steps=60, slow=9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("many") / "ranks"
    make(made, JOB)
    return made


@pytest.fixture(scope="module")
def seen(folder: Path) -> Recording:
    return many_ranks.read(folder)


@pytest.fixture(scope="module")
def found(seen: Recording) -> Findings:
    return findings_of(seen)


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("many") / "ten"
    make(made, TEN)
    return made


def test_few_ranks_are_kept_in_memory_and_all_are_told(seen: Recording, found: Findings, said: Check) -> None:
    assert len(seen.tables["take"]) == many_ranks.WHOLE * JOB.steps
    assert len(seen.tables["fetch"]) == many_ranks.WHOLE * JOB.steps
    assert (len(seen.others), len(seen.processes)) == (JOB.ranks - many_ranks.WHOLE, 2 * JOB.ranks)
    assert [rank.rank for rank in found.ranks] == list(range(JOB.ranks))
    assert (found.run.world_size, found.run.steps) == (JOB.ranks, JOB.ranks * JOB.steps)
    (note,) = (note for note in found.run.notes if " 32 ranks " in note)
    said("many ranks", note)
    assert " 8 " in note
    # What was let go was not counted, and so not measured.
    assert (found.run.overhead.capture_cpu_s, found.run.overhead.share_of_wall) == (None, None)


def test_the_rank_that_is_late_is_named_with_its_reason(found: Findings) -> None:
    late = max(found.ranks, key=lambda rank: rank.wait_s or 0.0)
    assert (late.rank, late.host) == (JOB.slow, "node2")
    assert (found.verdict.bottleneck, found.verdict.wait_s) == ("read", late.wait_s)


def test_the_findings_are_those_of_a_whole_reading(ten: Path) -> None:
    whole, found = findings_of(reader.read(ten)), findings_of(many_ranks.read(ten))
    assert dataclasses.replace(found.verdict, confidence="low") == dataclasses.replace(whole.verdict, confidence="low")
    assert found.ranks == whole.ranks
    assert found.stages == whole.stages
    assert [each.expected for each in found.advice] == [each.expected for each in whole.advice]
    # All ranks together, whoever was kept.
    assert check.samples_per_s(found) == pytest.approx(check.samples_per_s(whole))
    assert [each.name for each in found.loaders] == ["train_loader"] * TEN.ranks


def test_compared_with_itself_nothing_differs(ten: Path) -> None:
    side = compare.side(ten)
    speed = compare.compare(side, side).speed
    # Sixteen samples a step of 80 ms, and so do all ranks.
    assert speed.before == pytest.approx(TEN.ranks * 16 / 0.080, rel=0.01)
    assert speed.after == speed.before


def test_a_rank_that_is_asked_for_is_kept(folder: Path) -> None:
    seen = many_ranks.read(folder, rank=2)
    assert {process.rank for process in seen.processes} - {other.process.rank for other in seen.others} >= {2, JOB.slow}


def test_few_ranks_are_read_whole(tmp_path: Path) -> None:
    make(tmp_path / "few", Job(ranks=8, steps=20, slow=3))
    seen = many_ranks.read(tmp_path / "few")
    assert (seen.others, len(seen.tables["take"])) == ((), 160)


def test_a_report_takes_in_each_line_of_samples_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path / "r")
    process = made.process()
    made.stacks(process.pid, ["main (/home/me/train.py:41)"], 30)
    made.host(1, busy=1, job=[(process.pid, 0.5)])
    folder, read = made.finish(2), []

    def counted(path: Path, most: int) -> Iterator[dict[str, Any]]:
        read.append(path.name)
        return files.read_lines(path, most)

    monkeypatch.setattr(reader, "read_lines", counted)
    seen = many_ranks.read(folder)
    assert (len(seen.stacks), len(seen.host)) == (1, 1)
    assert sorted(read) == [files.HOST, files.STACKS]

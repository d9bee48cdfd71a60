"""A running job at a glance: from journals that grow, in bounded pieces; what it guesses is what the report says."""

from __future__ import annotations

from pathlib import Path

import pytest
from made import Made
from truths import PLANS

import loaderprof
from loaderprof.analyze import glance as live
from loaderprof.conclude import findings_of
from loaderprof.recording import journal as layout
from loaderprof.recording.journal import Journal

SAMPLES = Path(__file__).parents[2] / "sample_runs"
MS = 1_000_000
TRAINING, VALIDATION = 1, 0


class Loop:
    """A process that takes a batch every 10 ms, 4 of them waiting."""

    def __init__(self, folder: Path, name: str = "main") -> None:
        self.journal = Journal(str(folder / f"{name}.lpj"), {"pid": 1, "ppid": 0})
        self.now = 100 * MS

    def take(self, flags: int = TRAINING, ready: int = 3, count: int = 1) -> None:
        begun, self.now = self.now, self.now + count * 10 * MS
        taken = begun + 4 * MS if count == 1 else self.now
        self.journal.write(
            layout.TAKE, flags, ready + 1, 0, begun, taken, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, count, count * 4 * MS
        )


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


def test_nothing_is_said_before_there_is_anything(tmp_path: Path) -> None:
    assert live.Journals(tmp_path / "not yet").look(0) == live.Glance()
    assert live.Journals(tmp_path).look(0) == live.Glance()
    (tmp_path / "half.lpj").write_bytes(b"loaderpr")
    (tmp_path / "damaged.lpj").write_bytes(layout.MAGIC + b"[" * 100)
    assert live.Journals(tmp_path).look(0) == live.Glance()
    assert live.Glance().likely() is None


def test_each_look_goes_on_where_the_last_one_ended(tmp_path: Path, loop: Loop) -> None:
    journals = live.Journals(tmp_path)
    assert journals.look(loop.now).steps == 0
    for number in range(1, 40):
        loop.take()
        glance = journals.look(loop.now)
        assert (glance.steps, glance.ready) == (number, 3)
        if number > 1:
            assert glance.steps_per_s == pytest.approx(100)
            assert glance.wait_share == pytest.approx(0.4)
    assert glance.idle_s == pytest.approx(0.006)


def test_records_that_stand_for_many_batches_count_as_many(tmp_path: Path, loop: Loop) -> None:
    for _ in range(4):
        loop.take(count=64)
    glance = live.Journals(tmp_path).look(loop.now)
    assert glance.steps == 256
    assert glance.steps_per_s == pytest.approx(100)
    assert glance.wait_share == pytest.approx(0.4)


def test_rates_are_of_the_last_seconds(tmp_path: Path, loop: Loop) -> None:
    for _ in range(20):
        loop.take()
    journals = live.Journals(tmp_path)
    assert journals.look(loop.now).steps_per_s is not None
    glance = journals.look(loop.now + int(live.WINDOW_S * 1e9))
    assert (glance.steps, glance.steps_per_s, glance.wait_share) == (20, None, None)
    assert glance.idle_s == pytest.approx(live.WINDOW_S, rel=0.01)


def test_validation_is_not_counted_where_there_is_training(tmp_path: Path, loop: Loop) -> None:
    journals = live.Journals(tmp_path)
    for _ in range(5):
        loop.take(VALIDATION)
    assert journals.look(loop.now).steps == 5
    for _ in range(3):
        loop.take()
    loop.take(VALIDATION)
    assert journals.look(loop.now).steps == 3


def test_a_look_reads_no_more_than_its_bound_and_then_goes_on(tmp_path: Path, loop: Loop) -> None:
    bound, journals = live.MAX_CHUNKS * live.CHUNK_RECORDS, live.Journals(tmp_path)
    for _ in range(bound + 10):
        loop.take()
    assert journals.look(loop.now).steps == bound
    assert journals.look(loop.now).steps == bound + 10


def test_a_record_that_was_never_finished_stops_nothing(tmp_path: Path, loop: Loop) -> None:
    loop.take()
    torn = loop.journal.written + 1
    loop.take()
    loop.take()
    with open(tmp_path / "main.lpj", "r+b") as file:
        file.seek(layout.HEADER_BYTES + torn * layout.RECORD_BYTES)
        file.write(b"\0")
    assert live.Journals(tmp_path).look(loop.now).steps == 2


def test_of_many_workers_the_latest_are_read(tmp_path: Path, loop: Loop) -> None:
    loop.take()
    journals = live.Journals(tmp_path)
    for number in range(3 * live.MAX_WORKERS):
        worker = Journal(str(tmp_path / f"worker-{number:02}.lpj"), {"pid": 2 + number, "worker": number})
        worker.write(layout.OPERATOR, 0, 0, number, 0, worker.text("PIL.Image.open"), 1, 8 * MS, 8 * MS, 1)
    assert journals.look(loop.now).costs == {"decode": pytest.approx(0.008)}


@pytest.mark.parametrize("name", ["decode_bound", "io_bound", "transform_bound", "compute_bound", "healthy"])
def test_the_guess_is_the_verdict_of_the_sample_runs(name: str) -> None:
    folder = SAMPLES / name / "recording"
    found = loaderprof.read(folder)
    last = int(found.tables["take"]["t_taken"].max())
    glance = live.Journals(folder / "journals").look(last)
    assert glance.steps == findings_of(found).run.steps
    verdict = findings_of(found).verdict.bottleneck
    assert glance.likely() == ("device" if verdict == "none" else verdict)


@pytest.mark.parametrize("name", ["read", "decode", "transform", "collate", "handover"])
def test_the_guess_is_the_verdict_of_made_runs(tmp_path: Path, name: str) -> None:
    made = Made(tmp_path / "r")
    made.finish(made.loop(made.process(), PLANS[name][0]))
    last = int(loaderprof.read(made.folder).tables["take"]["t_taken"].max())
    assert live.Journals(made.folder / "journals").look(last).likely() == name

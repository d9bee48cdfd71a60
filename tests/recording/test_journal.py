"""Journals: what is written is read, within bounds, from several threads, on a full disk, over forks and kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loaderprof.recording import files, reader, tables
from loaderprof.recording import journal as layout
from loaderprof.recording.journal import HEADER_BYTES, RECORD_BYTES, SEGMENT_RECORDS, Journal

HEADER = {"pid": 100, "ppid": 1, "host": "here"}
NUMBER = st.integers(-(2**63), 2**63 - 1)


def opened(folder: Path, **header: object) -> Journal:
    (folder / reader.JOURNALS).mkdir(parents=True, exist_ok=True)
    files.write_meta(folder, {})
    return Journal(str(folder / reader.JOURNALS / "here-100-1.lpj"), {**HEADER, **header})


def file_of(folder: Path) -> Path:
    return next((folder / reader.JOURNALS).glob("*.lpj"))


@pytest.mark.parametrize("kind", sorted(layout.FIELDS))
def test_a_record_of_each_kind_comes_back_as_it_was_written(tmp_path: Path, kind: int) -> None:
    values = [100 + place for place in range(len(layout.FIELDS[kind]))]
    written = opened(tmp_path)
    text = written.text("what it is called")
    for place, name in enumerate(layout.FIELDS[kind]):
        if name in ("loader", "name", "caller", "file", "error"):
            values[place] = text
        if name in ("count", "wait_ns"):
            values[place] = 1
    written.write(kind, 3, 65535, *values)
    seen = reader.read(tmp_path)
    name = next(name for name, number in tables.KINDS.items() if number == kind)
    (row,) = seen.tables[name]
    assert (row["process"], row["flags"], row["extra"]) == (0, 3, 65535)
    assert int(row["thread"]) == threading.get_ident() & 0xFFFFFFFF
    for place, field in enumerate(layout.FIELDS[kind]):
        if field in ("loader", "name", "caller", "file", "error"):
            assert seen.texts[row[field]] == "what it is called"
        else:
            assert row[field] == values[place]
    assert all(len(table) == 0 for other, table in seen.tables.items() if other != name)


def test_every_kind_fits_its_record_and_is_read() -> None:
    kinds = {getattr(layout, name.upper()) for name in tables.KINDS}
    assert kinds == set(layout.FIELDS)
    assert layout.TEXT not in kinds
    assert len(set(tables.KINDS.values())) == len(tables.KINDS)
    assert max(len(fields) for fields in layout.FIELDS.values()) <= 15
    assert all(0 < kind < 256 for kind in kinds)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=600))
def test_texts_of_any_length_and_script_come_back(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("texts")
    written = opened(folder)
    number = written.text(text)
    assert written.text(text) == number
    written.write(layout.OPERATOR, 0, 0, 0, 0, number, 1, 1, 1, 1, written.text("other"))
    seen = reader.read(folder)
    row = seen.tables["operator"][0]
    assert seen.texts[row["name"]] == text.encode("utf-8", "replace").decode("utf-8")
    assert seen.texts[row["caller"]] == "other"
    assert len(seen.texts) == len({text, "other"})


def test_a_text_is_written_once_and_cut_at_its_bound(tmp_path: Path) -> None:
    written = opened(tmp_path)
    written.text("x" * 1000)
    before = written.written
    written.text("x" * 1000)
    assert written.written == before
    written.text("y" * 100_000)
    assert sorted(map(len, reader.read(tmp_path).texts)) == [1000, 65536]


def test_a_journal_never_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        Journal(str(tmp_path / "taken"), HEADER)
    assert (tmp_path / "taken").read_bytes() == b"precious"


@pytest.mark.parametrize("argument", ["a" * 200, "\u00e9" * 200, "\U0001f600" * 200])
def test_a_long_command_line_does_not_cost_the_journal(tmp_path: Path, argument: str) -> None:
    written = opened(tmp_path, argv=[argument] * 20, environment={"RANK": "3"})
    written.write(layout.PAUSE, 0, 0, 1, 2, 0)
    seen = reader.read(tmp_path)
    assert seen.notes == []
    assert [process.pid for process in seen.processes] == [100]
    assert seen.processes[0].rank == 3
    assert len(seen.tables["pause"]) == 1


def test_a_journal_stays_within_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MAX_RECORDS", 2 * SEGMENT_RECORDS)
    written = opened(tmp_path)
    for number in range(3 * SEGMENT_RECORDS):
        written.write(layout.PAUSE, 0, 0, number, number, 0)
    number = written.text("too late")
    assert written.full
    assert number > 0
    assert file_of(tmp_path).stat().st_size == HEADER_BYTES + 2 * SEGMENT_RECORDS * RECORD_BYTES
    seen = reader.read(tmp_path)
    assert seen.tables["pause"]["t_begun"].tolist() == list(range(2 * SEGMENT_RECORDS))
    assert seen.texts == []


def test_pressure_rises_as_a_journal_fills_up(tmp_path: Path) -> None:
    written = opened(tmp_path)
    pressures = []
    for share in (0.0, 0.3, 0.49, 0.5, 0.75, 0.9, 0.999, 1.0, 1.1):
        written.written = int(share * layout.MAX_RECORDS)
        pressures.append(written.pressure())
    assert pressures[:3] == [1, 1, 1]
    assert pressures[3] > 1
    assert pressures == sorted(pressures)
    assert pressures[-1] >= 1_000_000


def test_a_disk_that_fills_up_costs_records_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = opened(tmp_path)

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    for number in range(SEGMENT_RECORDS + 50):
        written.write(layout.PAUSE, 0, 0, number, number, 0)
    assert written.full
    assert len(reader.read(tmp_path).tables["pause"]) == SEGMENT_RECORDS


def test_no_signal_where_the_kernel_refuses_to_grow_the_file(tmp_path: Path) -> None:
    program = """
import resource, sys
from loaderprof.recording import journal as layout
size = layout.HEADER_BYTES + layout.SEGMENT_RECORDS * layout.RECORD_BYTES + 4096
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
journal = layout.Journal(sys.argv[1], {"pid": 1, "ppid": 1})
for number in range(2 * layout.SEGMENT_RECORDS):
    journal.write(layout.PAUSE, 0, 0, number, number, 0)
print(journal.full)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.lpj")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_threads_write_into_one_journal_without_losing_a_record(tmp_path: Path) -> None:
    written = opened(tmp_path)
    texts = [str(number) * 150 for number in range(40)]
    ready = threading.Barrier(4)

    def write(thread: int) -> None:
        ready.wait()
        for number in range(3000):
            written.write(layout.SAMPLE, 0, 0, thread, number)
            if number % 75 == 0:
                written.text(texts[number // 75])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    seen = reader.read(tmp_path)
    rows = seen.tables["sample"]
    assert sorted(zip(rows["worker"].tolist(), rows["batch"].tolist(), strict=True)) == sorted(
        (thread, number) for thread in range(4) for number in range(3000)
    )
    assert sorted(seen.texts) == sorted(texts)
    assert len(set(rows["thread"].tolist())) == 4


def test_a_text_that_two_threads_wrote_at_once_is_read_once(tmp_path: Path) -> None:
    written = opened(tmp_path)
    text = json.dumps({"name": "train_loader", "where": "x" * 300})
    number = written.text(text)
    written._write_text(number, text.encode())
    assert reader.read(tmp_path).texts == [text]


def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    program = """
import sys, time
from loaderprof.recording import journal as layout
journal = layout.Journal(sys.argv[1], {"pid": 1, "ppid": 1})
for number in range(1500):
    journal.write(layout.PAUSE, 0, 0, number, number, 0)
print("ready", flush=True)
time.sleep(60)
"""
    (tmp_path / reader.JOURNALS).mkdir()
    files.write_meta(tmp_path, {})
    path = tmp_path / reader.JOURNALS / "here-1-1.lpj"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert reader.read(tmp_path).tables["pause"]["t_begun"].tolist() == list(range(1500))


def test_a_forked_child_writes_a_journal_of_its_own(tmp_path: Path) -> None:
    program = """
import os, sys
from loaderprof.recording import journal as layout
from loaderprof.capture.hooks import install
from loaderprof.capture.hooks.process import process
install.begin(sys.argv[1])
process.open().write(layout.PAUSE, 0, 0, 1, 1, 0)
child = os.fork()
journal = process.open()
journal.write(layout.PAUSE, 0, 0, 2 if child else 3, os.getpid(), 0)
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    (tmp_path / reader.JOURNALS).mkdir()
    files.write_meta(tmp_path, {})
    subprocess.run([sys.executable, "-c", program, str(tmp_path / reader.JOURNALS)], timeout=60, check=True)
    seen = reader.read(tmp_path)
    assert len(seen.processes) == 2
    by_process = {
        process.pid: seen.tables["pause"]["t_begun"][seen.tables["pause"]["process"] == process.number].tolist()
        for process in seen.processes
    }
    assert sorted(by_process.values()) == [[1, 2], [3]]
    child = next(process for process in seen.processes if by_process[process.pid] == [3])
    assert child.ppid in by_process
    assert child.ppid != child.pid


def test_a_record_whose_kind_was_not_stored_yet_does_not_count(tmp_path: Path) -> None:
    written = opened(tmp_path)
    for number in range(3):
        written.write(layout.PAUSE, 0, 0, number, number, 0)
    with open(file_of(tmp_path), "r+b") as file:
        file.seek(HEADER_BYTES + RECORD_BYTES)
        file.write(b"\0")
    assert reader.read(tmp_path).tables["pause"]["t_begun"].tolist() == [0, 2]

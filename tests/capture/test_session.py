"""A session from start to stop: the folder it makes, what it samples, what it leaves when something fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loaderprof.capture import session
from loaderprof.capture.hooks import describe
from loaderprof.capture.session import Session, file_system, make_folder
from loaderprof.conclude import findings_of
from loaderprof.errors import OutputError
from loaderprof.recording import files, reader
from loaderprof.recording import journal as layout
from loaderprof.recording.journal import Journal


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ready and ends when its standard input closes."""
    program = "import sys; print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.communicate()


def until(true: Any) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_folder_is_named_after_the_job_and_the_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session.time, "strftime", lambda _: "0131-0915")
    names = []
    for _ in range(3):
        folder = make_folder(None, "train")
        assert folder.is_absolute()
        assert [path.name for path in folder.iterdir()] == [files.JOURNALS]
        names.append(folder.name)
    assert names == ["train-0131-0915", "train-0131-0915-2", "train-0131-0915-3"]


def test_a_folder_is_made_with_those_above_it_and_an_empty_one_is_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "a/b/c"):
        assert (make_folder(str(tmp_path / name), "train") / files.JOURNALS).is_dir()


def test_what_is_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for name, force, words in (
        ("file", False, "is a file"),
        ("file", True, "is a file"),
        ("full", False, "is not empty"),
        ("full", True, "no recording"),
        ("file/inside", False, "cannot be written"),
    ):
        with pytest.raises(OutputError, match=words):
            make_folder(str(tmp_path / name), "train", force)
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_force_removes_what_a_recording_holds_and_nothing_else(tmp_path: Path) -> None:
    folder = make_folder(str(tmp_path / "r"), "train")
    for name in (*(set(files.OWN) - {files.JOURNALS, files.NODES}), "notes.txt", f"{files.JOURNALS}/a.lpj"):
        (folder / name).write_text("x")
    make_folder(str(folder), "train", force=True)
    assert sorted(path.name for path in folder.rglob("*")) == sorted([files.JOURNALS, "notes.txt"])


def test_a_full_disk_is_told_before_the_job_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="cannot be written: No space left"):
        make_folder(str(tmp_path / "r"), "train")


def test_a_session_leaves_a_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: subprocess.Popen[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    folder = make_folder("r", "train")
    watched = Session(folder, ["train.py", "--api-key", "secret", "--token=secret", "--lr", "1"])
    began = reader.read(folder).meta
    assert began.ended_ns is None
    assert began.started_ns <= time.perf_counter_ns()
    watched.start(child.pid)
    until(lambda: (folder / files.HOST).exists() and b"\n" in (folder / files.HOST).read_bytes())
    watched.finish(3, None)
    watched.stop()
    seen = reader.read(folder)
    assert seen.notes == []
    assert seen.meta.exit_code == 3
    assert seen.meta.signal is None
    assert seen.meta.started_ns < seen.host[0]["t"] < seen.meta.ended_ns
    assert seen.meta.command == ["train.py", "--api-key", "***", "--token=***", "--lr", "1"]
    assert seen.meta.script_folder == str(tmp_path)
    assert seen.meta.cwd == str(tmp_path)
    assert (seen.meta.cpu_budget.cores or 0) > 0
    assert seen.meta.written["missing"].keys() == {"gpu", "stacks"}
    assert 0 <= seen.meta.sampler_cpu_s < 30
    assert {entry["pid"] for entry in seen.host[0]["processes"]} == {child.pid}
    assert child.poll() is None
    found = findings_of(seen)
    assert (found.run.exit_code, found.verdict.cause) == (3, "no-loader")


def test_a_session_that_never_started_can_be_finished(tmp_path: Path) -> None:
    folder = make_folder(str(tmp_path / "r"), "train")
    Session(folder, ["train.py"]).finish(None, "SIGKILL")
    meta = reader.read(folder).meta
    assert (meta.exit_code, meta.signal) == (None, "SIGKILL")


class Broken:
    """A sampler that fails."""

    def __init__(self) -> None:
        self.period_s, self.missing, self.calls, self.closed = 0.0, None, 0, False

    def sample(self, job: Any) -> None:
        self.calls += 1
        raise ValueError("no such counter")

    def close(self) -> None:
        self.closed = True


def test_a_sampler_that_fails_is_out_and_the_others_go_on(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    folder = make_folder(str(tmp_path / "r"), "train")
    broken = Broken()
    watched = Session(folder, ["train.py"], more=[broken])  # type: ignore[list-item]
    watched.start(child.pid)
    until(lambda: broken.calls and (folder / files.HOST).exists())
    watched.finish(0, None)
    assert broken.calls == 1
    assert broken.missing == "not measured: ValueError: no such counter"
    assert broken.closed
    assert reader.read(folder).host


def test_a_disk_that_is_full_at_the_end_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watched = Session(make_folder(str(tmp_path / "r"), "train"), ["train.py"])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_meta", full)
    watched.finish(0, None)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("loaderprof: ")
    assert "No space left on device; the recording is incomplete" in line


def journal_of(folder: Path, pid: int, host: str | None = None, records: int = 3) -> Path:
    path = folder / f"{host or describe.host()}-{pid}-1.lpj"
    written = Journal(str(path), {"pid": pid, "ppid": 1, "host": host or describe.host()})
    for number in range(records):
        written.write(layout.SAMPLE, 0, 0, 0, number, 0, 0, 0, 0)
    return path


def test_journals_of_processes_that_are_gone_are_trimmed(tmp_path: Path) -> None:
    folder = make_folder(str(tmp_path / "r"), "train")
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    trimmed, alive, elsewhere = (
        journal_of(folder / files.JOURNALS, gone.pid),
        journal_of(folder / files.JOURNALS, os.getpid()),
        journal_of(folder / files.JOURNALS, gone.pid, "another-host"),
    )
    foreign = folder / files.JOURNALS / "odd.lpj"
    foreign.write_bytes(b"\0" * 9000)
    whole = alive.stat().st_size
    Session(folder, ["train.py"]).finish(0, None)
    assert trimmed.stat().st_size == layout.HEADER_BYTES + 3 * layout.RECORD_BYTES
    assert (alive.stat().st_size, elsewhere.stat().st_size, foreign.stat().st_size) == (whole, whole, 9000)
    seen = reader.read(folder)
    assert seen.tables["sample"]["batch"].tolist() == [0, 1, 2] * 3


def test_on_a_network_file_system_journals_live_elsewhere_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "file_system", lambda _: "nfs4")
    folder = make_folder(str(tmp_path / "r"), "train")
    watched = Session(folder, ["train.py"])
    assert not watched.journals.is_relative_to(folder)
    journal_of(watched.journals, os.getpid())
    watched.finish(0, None)
    assert not watched.journals.exists()
    seen = reader.read(folder)
    assert len(seen.tables["sample"]) == 3
    assert seen.meta.written["live_journals"] is None


@pytest.mark.skipif(sys.platform != "linux", reason="mounts are read from /proc")
def test_the_file_system_is_that_of_the_nearest_mount() -> None:
    assert file_system(Path("/proc/self")) == "proc"
    assert file_system(Path("/dev/shm")) in ("tmpfs", "devtmpfs", file_system(Path("/dev")))
    assert file_system(Path("/procession")) == file_system(Path("/"))


def test_beside_a_process_it_says_when_it_is_ready_and_ends_with_its_input(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    folder = make_folder(str(tmp_path / "r"), "profile")
    files.write_meta(folder, {"command": ["notebook"], "cwd": "/x", "started_ns": 5, "started_unix_ns": 6})
    command = [sys.executable, "-m", "loaderprof.capture.session", str(child.pid), str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as beside:
        assert beside.stdout is not None
        assert beside.stdout.readline() == "ready\n"
        out, err = beside.communicate(timeout=60)
    assert (beside.returncode, out, err) == (0, "", "")
    meta = json.loads((folder / files.META).read_text())
    assert (meta["command"], meta["cwd"], meta["started_ns"]) == (["notebook"], "/x", 5)
    assert meta["ended_ns"] > 5

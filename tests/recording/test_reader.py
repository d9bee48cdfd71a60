"""Reading recordings: whole ones exactly, torn ones to the last whole record, foreign ones without harm."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import Fetch, Made, Plan, ns

from loaderprof import cli
from loaderprof.conclude import findings_of
from loaderprof.errors import RecordingError
from loaderprof.findings import Findings
from loaderprof.recording import files, reader
from loaderprof.recording import journal as layout
from loaderprof.recording.journal import HEADER_BYTES, RECORD_BYTES

T = TypeVar("T")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
fuzzed = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def whole(folder: Path) -> Path:
    """Make a small recording with something in every file."""
    made = Made(folder, sources={"/home/me/train.py:41": "image = decode(raw)"}, exit_code=0)
    main = made.process()
    decode = Fetch(cpu=0.004, operators=[("PIL.ImageFile.ImageFile.load", 0.003, 0.003)], deep_every=4)
    ended = made.loop(main, Plan(batches=25, workers=1, wait=0.001, step=0.003, fetch=decode, epochs=2))
    main.size(0, 1000, 16)
    made.stacks(main.pid, ["main (/home/me/train.py:41)", "save (/home/me/train.py:60)"], 30)
    for second in range(4):
        made.host(second, busy=second, job=[(main.pid, second / 2)])
    return made.finish(ended)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(tmp_path_factory.mktemp("whole") / "r")


@pytest.fixture(scope="module")
def bottleneck(original: Path) -> str:
    """What the whole recording says."""
    return findings_of(reader.read(original)).verdict.bottleneck


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "r"))


def journal_of(folder: Path) -> Path:
    """The first process's journal, cut down to the records it holds."""
    path = min((folder / reader.JOURNALS).glob("*.lpj"))
    raw = path.read_bytes()
    records = [raw[at : at + RECORD_BYTES] for at in range(HEADER_BYTES, len(raw), RECORD_BYTES)]
    used = sum(record[0] != 0 for record in records)
    path.write_bytes(raw[: HEADER_BYTES + used * RECORD_BYTES])
    return path


def rows(seen: reader.Recording, process: int = 0) -> int:
    return sum(int((table["process"] == process).sum()) for table in seen.tables.values())


def survives(folder: Path) -> Findings | None:
    """Read and conclude: findings that can be written and read again, or one sentence."""
    found, refused = None, ""
    try:
        found = findings_of(reader.read(folder))
    except RecordingError as error:
        refused = error.message
    if found is None:
        assert refused.count("\n") == 0 < len(refused)
        return None
    assert Findings.from_json(found.to_json()).to_json() == found.to_json()
    return found


def test_every_file_of_a_recording_is_read(folder: Path) -> None:
    seen = reader.read(folder)
    assert seen.notes == []
    assert seen.meta.exit_code == 0
    assert [process.worker for process in seen.processes] == [None, 0, 0]
    assert len(seen.tables["take"]) == 50
    assert len(seen.tables["fetch"]) == 50
    assert [line["t"] for line in seen.host] == [ns(second) for second in range(4)]
    (sample,) = seen.stacks
    assert sample.frames[-1] == "save (/home/me/train.py:60)"
    assert (sample.count, sample.thread, sample.t_begun) == (30, "MainThread", ns(0))
    assert "PIL.ImageFile.ImageFile.load" in seen.texts


def test_texts_of_several_journals_share_one_numbering(tmp_path: Path) -> None:
    made = Made(tmp_path / "r")
    for words in (["a", "b"], ["b", "c"]):
        process = made.process()
        for word in words:
            process.journal.write(layout.OPERATOR, 0, 0, 0, 0, process.journal.text(word), 1, 1, 1, 1, 99)
    seen = made.read()
    named = [(int(row["process"]), seen.texts[row["name"]]) for row in seen.tables["operator"]]
    assert named == [(0, "a"), (0, "b"), (1, "b"), (1, "c")]
    assert sorted(seen.texts) == ["a", "b", "c"]
    assert set(seen.tables["operator"]["caller"].tolist()) == {-1}


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({"RANK": "3"}, 3),
        ({"SLURM_PROCID": "2"}, 2),
        ({"RANK": "1", "SLURM_PROCID": "7"}, 1),
        ({"RANK": ""}, None),
        ({"RANK": "-1"}, None),
        ({"RANK": "\u00b2"}, None),
        ({"RANK": 4}, None),
        ({"RANK": "1234567"}, 1234567),
        ({"RANK": "12345678"}, None),
        ("RANK=1", None),
        (None, None),
    ],
)
def test_ranks_come_from_the_launchers_environment(tmp_path: Path, environment: Any, rank: int | None) -> None:
    made = Made(tmp_path / "r")
    made.process(environment=environment)
    assert [process.rank for process in made.read().processes] == [rank]


def test_a_journal_cut_anywhere_is_read_to_its_last_whole_record(folder: Path) -> None:
    path = journal_of(folder)
    for other in (folder / reader.JOURNALS).glob("*.lpj"):
        if other != path:
            other.unlink()
    raw = path.read_bytes()
    keep = 6
    kinds = [raw[HEADER_BYTES + number * RECORD_BYTES] for number in range(keep)]
    # Around every border, and here and there within a record.
    borders = (number * RECORD_BYTES + off for number in range(1, keep) for off in (-1, 0, 1))
    for extra in sorted({*range(0, keep * RECORD_BYTES, 29), *borders}):
        path.write_bytes(raw[: HEADER_BYTES + extra])
        seen = reader.read(folder)
        assert rows(seen) == sum(kind != layout.TEXT for kind in kinds[: extra // RECORD_BYTES])
        assert seen.notes == []


def test_a_journal_cut_within_its_header_is_left_out_and_said_so(folder: Path) -> None:
    path = journal_of(folder)
    raw = path.read_bytes()
    text = len(raw[:HEADER_BYTES].rstrip(b"\0"))
    for length in (*range(0, text, 7), text - 1):
        path.write_bytes(raw[:length])
        seen = reader.read(folder)
        assert len(seen.processes) == 2
        assert seen.notes == [f"{path.name} is damaged and was left out"]


def test_a_text_that_was_torn_is_unknown_and_not_half_known(folder: Path) -> None:
    path = journal_of(folder)
    raw = path.read_bytes()
    # The loader's facts come first and fill several records; the second of them was never written.
    assert [raw[HEADER_BYTES + number * RECORD_BYTES] for number in range(3)] == [layout.TEXT] * 3
    at = HEADER_BYTES + RECORD_BYTES
    path.write_bytes(raw[:at] + bytes(RECORD_BYTES) + raw[at + RECORD_BYTES :])
    seen = reader.read(folder)
    assert seen.tables["iterator"]["loader"].tolist() == [-1, -1]
    assert not any("num_workers" in text for text in seen.texts)


@pytest.mark.parametrize("name", [reader.HOST, reader.STACKS])
def test_json_lines_cut_anywhere_are_read_to_the_last_whole_line(folder: Path, name: str) -> None:
    raw = (folder / name).read_bytes()
    shutil.rmtree(folder / reader.JOURNALS)
    borders = (at + off for at, byte in enumerate(raw) if byte == 10 for off in (0, 1, 2))
    for length in sorted({*range(0, len(raw), 17), *borders}):
        (folder / name).write_bytes(raw[:length])
        seen = reader.read(folder)
        lines = seen.host if name == reader.HOST else seen.stacks
        whole_lines = raw[:length].count(b"\n") + (raw[length : length + 1] == b"\n")
        assert len(lines) == whole_lines


EPOCH_NS = 1_700_000_000 * 10**9


def of_two_nodes(folder: Path) -> Path:
    """A job of two nodes of one worker each: the second one's clock began 3 s later, and was 2 s further then."""
    for name, rank, unix_s, clock_s in (("", 0, 0, 0), ("nodes/1-other", 1, 3, 2)):
        made = Made(
            folder / name, host=f"node{rank}", started_ns=ns(clock_s), started_unix_ns=EPOCH_NS + unix_s * 10**9
        )
        main, worker = (
            made.process(worker=place, pid=pid, host=f"node{rank}", environment={"RANK": str(rank)})
            for place, pid in ((None, 500), (0, 600))
        )
        number = main.iterator({"name": "train", "num_workers": 1}, 10, 11, workers=[600])
        main.take(number, 11, 12)
        main.end(number, 13, 14)
        worker.fetch(0, 0, 11, Fetch(cpu=0.5))
        made.window(
            20,
            22,
            frames=["f (train.py:1)"],
            stacks=[[500, "MainThread", [0], 4], [500, "MainThread", [0], 6]],
            threads=[[500, "MainThread", 10**9, 10**8]],
            gil=[[500, 5], 7, [], ["x"]],
            locks=[[500, "MainThread", 8, 2]],
            files=[[600, 12, [["/data/a.h5", 99]]]],
        )
        # A window as earlier versions wrote it, of stacks alone.
        made.stacks(500, ["g (train.py:2)"], 3)
        made.host(1, busy=1, job=[(500, 0.5)])
        made.finish(30 + clock_s)
    return folder


def test_nodes_stand_on_one_clock_and_share_no_process_id(tmp_path: Path) -> None:
    seen = reader.read(of_two_nodes(tmp_path / "r"))
    other = reader.MAX_PID
    assert seen.notes == ["the node node1 was merged; samples of machines are the first node's"]
    assert [(each.pid, each.own_pid, each.rank, each.host, each.worker) for each in seen.processes] == [
        (500, 500, 0, "node0", None),
        (600, 600, 0, "node0", 0),
        (other + 500, 500, 1, "node1", None),
        (other + 600, 600, 1, "node1", 0),
    ]
    # What the second node saw 8 s after it began came 11 s after the first began.
    assert seen.tables["take"]["t_asked"].tolist() == [ns(11), ns(12)]
    assert seen.tables["end"]["t_done"].tolist() == [ns(14), ns(15)]
    assert seen.tables["worker"]["pid"].tolist() == [600, other + 600]
    # A moment that was not taken stays one.
    assert seen.tables["worker"]["t_entered"].tolist() == [0, 0]
    assert [(each.pid, each.t_begun, each.t_done) for each in seen.stacks] == [
        *[(500, ns(20), ns(22))] * 2,
        (500, ns(0), ns(2)),
        *[(other + 500, ns(21), ns(23))] * 2,
        (other + 500, ns(1), ns(3)),
    ]
    assert [(each.pid, each.wall_s, each.cpu_s, each.runq_s) for each in seen.threads] == [
        (500, 2, 1, 0.1),
        (other + 500, 2, 1, 0.1),
    ]
    assert seen.gil == [(500, 5, 10), (other + 500, 5, 10)]
    assert [(each.pid, each.looks, each.asleep) for each in seen.locks] == [(500, 8, 2), (other + 500, 8, 2)]
    assert [(each.pid, each.descriptors, each.files) for each in seen.open_files] == [
        (600, 12, {"/data/a.h5": 99}),
        (other + 600, 12, {"/data/a.h5": 99}),
    ]
    assert len(seen.host) == 1
    assert len(findings_of(seen).ranks) == 2


@pytest.mark.parametrize("make", ["file", "empty", "no clock", "damaged", "pipe", "device", "hostile name", "itself"])
def test_what_is_no_node_is_named_and_left_out(tmp_path: Path, make: str) -> None:
    folder = of_two_nodes(tmp_path / "r")
    name = "2-\udcff\n\x1b[31m" if make == "hostile name" else "2-more"
    node = folder / files.NODES / name
    if make == "file":
        node.write_text("{}")
    elif make == "itself":
        node.symlink_to(name)
    else:
        node.mkdir()
    if make == "no clock":
        files.write_meta(node, {"started_ns": ns(0), "started_unix_ns": None})
    elif make == "damaged":
        (node / files.META).write_text('{"format": 1')
    elif make == "pipe":
        os.mkfifo(node / files.META)
    elif make == "device":
        (node / files.META).symlink_to("/dev/zero")
    seen = reader.read(folder)
    assert len(seen.processes) == 4
    named = name.replace("\udcff", "\\udcff")
    assert f"nodes/{named} is no recording of a node and was left out" in seen.notes
    assert json.loads(findings_of(seen).to_json())


def test_of_more_nodes_and_journals_than_can_be_the_first_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = of_two_nodes(tmp_path / "r")
    for number in range(2, 6):
        shutil.copytree(folder / files.NODES / "1-other", folder / files.NODES / f"{number}-other")
    assert len(reader.read(folder).processes) == 12
    monkeypatch.setattr(reader, "MAX_NODES", 3)
    assert [each.pid // reader.MAX_PID for each in reader.read(folder).processes] == [0, 0, 1, 1, 2, 2, 3, 3]
    monkeypatch.setattr(reader, "MAX_JOURNALS", 5)
    assert len(reader.read(folder).processes) == 5
    assert reader.processes(folder) == reader.read(folder).processes


def test_links_to_one_journal_do_not_multiply_it_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = of_two_nodes(tmp_path / "r")
    journals = folder / reader.JOURNALS
    first = min(journals.iterdir())
    whole_bytes = first.stat().st_size - HEADER_BYTES
    for number in range(40):
        (journals / f"z-{number}.lpj").hardlink_to(first)
    monkeypatch.setattr(reader, "MAX_JOURNALS_BYTES", 10 * whole_bytes)
    seen = reader.read(folder)
    assert seen.journal_bytes == 10 * whole_bytes
    # Eight links beside the two journals of the node itself.
    assert len(seen.tables["take"]) == 9
    assert sum("the rest was left out" in note for note in seen.notes) == 1


def test_a_journal_that_kept_all_is_read_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = len(reader.read(folder).tables["take"])
    monkeypatch.setattr(reader, "MAX_JOURNAL_BYTES", 1024)
    assert len(reader.read(folder).tables["take"]) < whole
    meta = json.loads((folder / files.META).read_text())
    files.write_meta(folder, {**meta, "keep": True})
    assert len(reader.read(folder).tables["take"]) == whole


def test_a_recording_whose_files_are_links_leads_nowhere(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    for name in (files.FINDINGS, files.FINDINGS + ".new", files.META + ".new", "verified.json"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(mine)
    assert cli.main(["report", str(folder)]) == 0
    files.write_meta(folder, reader.read(folder).meta.written)
    assert mine.read_text() == "mine"
    assert json.loads((folder / files.FINDINGS).read_text())["schema_version"] == 1
    assert not (folder / files.FINDINGS).is_symlink()


@pytest.mark.parametrize("name", [files.META, files.HOST, files.STACKS, files.FINDINGS, "verified.json", files.NODES])
def test_a_pipe_in_the_place_of_a_file_keeps_nobody_waiting(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert cli.main(["report", str(folder)]) == (2 if name == files.META else 0)


def test_a_window_of_looks_is_taken_in_only_where_it_can_be_one(tmp_path: Path) -> None:
    made = Made(tmp_path / "r")
    frames, stack = ["f (a.py:1)"], [[7, "MainThread", [0], 4]]
    made.window(
        1,
        2,
        frames=frames,
        stacks=[[7, "MainThread", [0], 4], [7, "Other", [0], 9], [7, "MainThread", [0], 0]],
        threads=[
            [7, "a", 1, 0],
            [7, "b", 0, 1],
            [7, "c", -1, 0],
            [7, "d", 0, -1],
            [7, "e", 1 << 60, 0],
            [7, "f", 0, 1 << 60],
        ],
        gil=[[7, 0], [7, 3], [8, 3], [7, -1], [7, 1 << 31]],
        locks=[[7, "a", 2, 0], [7, "b", 2, 2], [7, "c", 2, 3], [7, "d", 2, -1], [7, "e", 1 << 31, 0]],
        files=[[7, 0, []], [7, -1, []], [7, 1 << 31, []], [7, 3, [["/a", 0], ["/b", -1], ["/c", 1 << 60]]]],
    )
    # Windows that end before they begin, last for longer than any clock, or tell no thread's samples.
    made.window(2, 1, frames=frames, stacks=stack, threads=[[7, "g", 1, 1]])
    made.window(1, 1, frames=frames, stacks=stack, threads=[[7, "h", 1, 1]])
    made.window(0, 1 << 31, frames=frames, stacks=stack, threads=[[7, "i", 1, 1]])
    made.window(1, 2, frames=frames, stacks=[[7, "MainThread", [], 4]], gil=[[7, 2]])
    made.window(1, 2, frames=frames, stacks=[[7, "MainThread", [1], 4]])
    seen = made.read()
    assert [(each.thread, each.count, each.t_done) for each in seen.stacks] == [
        ("MainThread", 4, ns(2)),
        ("Other", 9, ns(2)),
        ("MainThread", 4, ns(1)),
    ]
    assert [each.thread for each in seen.threads] == ["a", "b"]
    assert seen.gil == [(7, 0, 4), (7, 3, 4), (7, 2, 4)]
    assert [each.thread for each in seen.locks] == ["a", "b"]
    assert [(each.descriptors, each.files) for each in seen.open_files] == [(0, {}), (3, {"/a": 0})]


def test_a_counter_that_went_back_counts_for_nothing(tmp_path: Path) -> None:
    made = Made(tmp_path / "r")
    for runq in (-5, 5):
        made.process(worker=0).journal.write(
            layout.FETCH, 0, 1, 0, 0, ns(1), ns(2), ns(2), 0, runq, 0, 0, 0, 0, 0, 0, -1, 1
        )
    assert made.read().tables["fetch"]["runq_ns"].tolist() == [0, 5]


def test_a_text_of_any_length_comes_back_whole(tmp_path: Path) -> None:
    made = Made(tmp_path / "r")
    process = made.process()
    # A record holds 104 bytes of a text; an empty one takes a record, too.
    texts = ["", *("x" * length for length in (1, 103, 104, 105, 208, 209, 5000)), "caf\u00e9 " * 40, "\udcff"]
    for text in texts:
        process.journal.write(layout.OPERATOR, 0, 0, 0, 0, process.journal.text(text), 1, 1, 1, 1, 0)
    seen = made.read()
    assert [seen.texts[name] for name in seen.tables["operator"]["name"]] == [*texts[:-1], "?"]


def test_a_recording_of_which_only_the_meta_is_left_can_be_read(folder: Path) -> None:
    shutil.rmtree(folder / reader.JOURNALS)
    for name in (reader.HOST, reader.STACKS):
        (folder / name).unlink()
    seen = reader.read(folder)
    assert seen.processes == []
    assert findings_of(seen).verdict.bottleneck == "unknown"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no recording"),
        ("", "damaged"),
        ("{", "damaged"),
        ("[]", "names no format"),
        ("{}", "names no format"),
        ('{"format": "1"}', "names no format"),
        ('{"format": 99}', "newer loaderprof"),
        ("[" * 100_000, "damaged"),
        ("\udcff", "damaged"),
    ],
)
def test_a_folder_that_is_no_readable_recording_is_refused_in_one_sentence(
    folder: Path, text: str | None, words: str
) -> None:
    (folder / reader.META).unlink()
    if text is not None:
        (folder / reader.META).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RecordingError, match=words) as caught:
        reader.read(folder)
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("make", ["missing", "file"])
def test_what_is_no_folder_is_refused(tmp_path: Path, make: str) -> None:
    if make == "file":
        (tmp_path / "r").write_text("{}")
    with pytest.raises(RecordingError, match="is not a folder") as caught:
        reader.read(tmp_path / "r")
    assert "loaderprof run" in caught.value.hint


def test_a_newer_journal_is_refused_in_one_sentence(folder: Path) -> None:
    path = journal_of(folder)
    path.write_bytes(path.read_bytes().replace(b"loaderprof-journal 1\n", b"loaderprof-journal 2\n", 1))
    with pytest.raises(RecordingError, match="newer loaderprof") as caught:
        reader.read(folder)
    assert path.name in caught.value.message
    assert "upgrade" in caught.value.hint


def test_files_that_are_no_journals_are_named_and_left_out(folder: Path) -> None:
    journals = folder / reader.JOURNALS
    (journals / "a.lpj").write_bytes(b"")
    (journals / "b.lpj").write_bytes(os.urandom(10_000))
    (journals / "c.lpj").mkdir()
    (journals / "d.lpj").symlink_to(journals / "nowhere")
    os.mkfifo(journals / "e.lpj")
    (journals / "notes.txt").write_text("not ours")
    seen = reader.read(folder)
    assert len(seen.processes) == 3
    assert sorted(note.split()[0] for note in seen.notes) == ["a.lpj", "b.lpj", "c.lpj", "d.lpj", "e.lpj"]
    assert reader.processes(folder) == seen.processes


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_nothing_that_is_read_is_executed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(Bomb())
    path = journal_of(folder)
    (folder / reader.JOURNALS / "bomb.lpj").write_bytes(bomb)
    path.write_bytes(path.read_bytes() + bomb)
    for name in (reader.HOST, reader.STACKS):
        (folder / name).write_bytes(bomb + b"\n" + (folder / name).read_bytes())
    assert len(reader.read(folder).host) == 4
    (folder / reader.META).write_bytes(bomb)
    with pytest.raises(RecordingError):
        reader.read(folder)
    assert not (tmp_path / "exploded").exists()


def with_peak(read: Callable[[Path], T], folder: Path) -> tuple[T, int]:
    """Read, and return what was read with the most bytes that were held meanwhile."""
    tracemalloc.start()
    try:
        return read(folder), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_memory_that_a_huge_file_costs_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_LINES_BYTES", 1 << 20)
    path = journal_of(folder)
    for file in (path, folder / reader.HOST, folder / reader.STACKS):
        os.truncate(file, 4 << 30)  # sparse: it takes no room on the disk
    seen, peak = with_peak(reader.read, folder)
    assert rows(seen) > 50
    assert peak < 8 * reader.MAX_JOURNAL_BYTES


def test_of_processes_nothing_is_read_but_the_headers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = reader.read(folder)
    # As much as may be read is set aside.
    monkeypatch.setattr(reader, "MAX_META_BYTES", 1 << 16)
    (folder / reader.HOST).unlink()
    (folder / reader.STACKS).unlink()
    for file in (folder / reader.JOURNALS).iterdir():
        os.truncate(file, 4 << 30)
    processes, peak = with_peak(reader.processes, folder)
    assert processes == seen.processes
    assert peak < 1 << 20


@pytest.mark.parametrize("value", [2**60, -(2**60), 2**63 - 1, -(2**63), -1, 0])
def test_records_with_impossible_numbers_do_no_harm(folder: Path, bottleneck: str, value: int) -> None:
    path = journal_of(folder)
    records = b""
    for kind, names in layout.FIELDS.items():
        record = bytearray(RECORD_BYTES)
        layout._BODY.pack_into(record, 0, 1, 65535, 1, *([value] * len(names) + [0] * (15 - len(names))))
        record[0] = kind
        records += bytes(record) * 3
    path.write_bytes(path.read_bytes() + records)
    after = survives(folder)
    assert after is not None
    assert after.run.steps is not None
    assert after.run.steps < 1000
    assert after.verdict.bottleneck == bottleneck


@pytest.mark.parametrize("value", [2**60, -(2**40), 0])
def test_one_impossible_number_in_a_take_does_no_harm(folder: Path, value: int) -> None:
    path = journal_of(folder)
    raw = bytearray(path.read_bytes())
    takes = [at for at in range(HEADER_BYTES, len(raw), RECORD_BYTES) if raw[at] == layout.TAKE]
    # Another field of every second take, past the first epoch's beginning.
    for field in range(len(layout.FIELDS[layout.TAKE])):
        at = takes[10 + 2 * field] + 8 + 8 * field
        raw[at : at + 8] = value.to_bytes(8, "little", signed=True)
    path.write_bytes(raw)
    found = survives(folder)
    assert found is not None
    assert found.verdict.wait_s is None or 0 <= found.verdict.wait_s < 1


def test_bits_flipped_anywhere_do_no_harm(folder: Path) -> None:
    path = journal_of(folder)
    raw = path.read_bytes()
    dice = random.Random(20240613)
    for _ in range(25):
        damaged = bytearray(raw)
        for _ in range(dice.choice([1, 3, 40])):
            at = dice.randrange(len(raw)) if dice.random() < 0.2 else dice.randrange(HEADER_BYTES, len(raw))
            damaged[at] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        survives(folder)


KEYS = (
    "started_ns",
    "ended_ns",
    "exit_code",
    "signal",
    "command",
    "cwd",
    "script_folder",
    "cpu_budget",
    "missing",
    "gpus",
    "sources",
    "sampler_cpu_s",
    "started_unix_ns",
    "loaderprof",
    "job",
    "mode",
    "host",
    "open_files_limit",
)


@fuzzed
@given(key=st.sampled_from(KEYS), value=JSON)
def test_meta_of_any_type_does_no_harm(original: Path, folder: Path, key: str, value: Any) -> None:
    meta = json.loads((original / reader.META).read_text())
    meta[key] = value
    files.write_meta(folder, {name: item for name, item in meta.items() if name != "format"})
    survives(folder)


@fuzzed
@given(key=st.sampled_from(["pid", "ppid", "host", "worker", "torch", "python", "environment", "argv"]), value=JSON)
def test_a_journals_header_of_any_type_does_no_harm(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    made = Made(tmp_path_factory.mktemp("header") / "r")
    main = made.process(**{key: value} if key not in ("pid", "ppid") else {})
    if key in ("pid", "ppid"):
        path = next((made.folder / reader.JOURNALS).glob("*.lpj"))
        raw = path.read_bytes()
        header = json.loads(raw[len(layout.MAGIC) : HEADER_BYTES].rstrip(b"\0"))
        head = layout.MAGIC + json.dumps({**header, key: value}).encode()
        path.write_bytes(head[: HEADER_BYTES - 1].ljust(HEADER_BYTES, b"\0") + raw[HEADER_BYTES:])
    else:
        made.loop(main, Plan(batches=25, fetch=Fetch(cpu=0.001), wait=0.001))
    survives(made.finish())


@fuzzed
@given(
    key=st.sampled_from(
        [
            "num_workers",
            "batch_size",
            "prefetch_factor",
            "samples",
            "in_order",
            "name",
            "where",
            "dataset",
            "dataset_where",
            "collate_fn",
            "sampler",
            "start_method",
        ]
    ),
    value=JSON,
)
def test_a_loaders_facts_of_any_type_do_no_harm(tmp_path_factory: pytest.TempPathFactory, key: str, value: Any) -> None:
    made = Made(tmp_path_factory.mktemp("facts") / "r")
    main = made.process()
    made.loop(main, Plan(batches=30, fetch=Fetch(cpu=0.01, blocked=0.01), wait=0.02, facts={key: value}))
    main.size(-1, 1000, 16)
    survives(made.finish())


@fuzzed
@given(name=st.sampled_from([reader.HOST, reader.STACKS]), key=st.text(max_size=8), value=JSON, data=st.data())
def test_samples_of_any_type_do_no_harm(
    original: Path, folder: Path, name: str, key: str, value: Any, data: st.DataObject
) -> None:
    lines = [json.loads(line) for line in (original / name).read_text().splitlines()]
    line = data.draw(st.sampled_from(lines))
    key = data.draw(st.sampled_from([*line, "memory", "shm", "disk", "gpu", key]))
    line[key] = value
    if data.draw(st.booleans()) and isinstance(line.get("processes"), list) and line["processes"]:
        line["processes"] = [value, *line["processes"]]
    (folder / name).write_text("".join(json.dumps(each) + "\n" for each in lines))
    survives(folder)


@pytest.mark.slow
def test_recordings_damaged_by_the_fuzzer_do_no_harm() -> None:
    fuzzer = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"
    done = subprocess.run([sys.executable, str(fuzzer), "--seconds", "20"], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout


def test_meta_is_written_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / reader.META).read_bytes()

    def refuse(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        files.write_meta(folder, {"new": 1})
    assert (folder / reader.META).read_bytes() == before

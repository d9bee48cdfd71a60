"""Exports of hand-made recordings, read back by the real consumer where one installs, else held against its format."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from exports import BATCHES, PLAN, STEP_S, UNIX_NS, WAIT_S, exported, recorded
from made import Fetch, Made, Plan

from loaderprof import cli
from loaderprof.commands import export
from loaderprof.conclude import findings_of
from loaderprof.errors import OutputError, RecordingError
from loaderprof.findings import Findings, Loader, Overhead, Run, StageCost, Verdict
from loaderprof.recording import files, reader
from loaderprof.report import metrics

HOSTILE = 'a "loader"\\\nwith </script> and \r'


def trace(folder: Path) -> dict[str, Any]:
    return dict(json.loads(exported(folder, "chrome")))


def slices(document: dict[str, Any], pattern: str) -> list[dict[str, Any]]:
    return [one for one in document["traceEvents"] if one["ph"] == "X" and re.fullmatch(pattern, one["name"])]


def test_each_format_has_a_file_of_its_own() -> None:
    assert set(export.FORMATS) == set(files.EXPORTS)


def test_the_trace_is_on_the_clock_of_torch_profiler(tmp_path: Path) -> None:
    document = trace(recorded(tmp_path / "r"))
    base = document["baseTimeNanoseconds"]
    assert base == 1_790_857_026_000_000_000 - 7_889_238_000_000_000
    first = slices(document, "ProfilerStep#0")[0]
    asked_s = PLAN.startup
    assert base + first["ts"] * 1000 == pytest.approx(UNIX_NS + asked_s * 1e9, abs=2000)


def test_each_step_holds_the_waiting_for_its_batch(tmp_path: Path) -> None:
    document = trace(recorded(tmp_path / "r"))
    steps = slices(document, r"ProfilerStep#\d+")
    waits = slices(document, r"enumerate\(DataLoader\)#_MultiProcessingDataLoaderIter\.__next__")
    assert [one["name"] for one in steps] == [f"ProfilerStep#{number}" for number in range(BATCHES)]
    assert {one["cat"] for one in steps + waits} == {"user_annotation"}
    assert len(waits) == BATCHES
    for step, wait in zip(steps, waits, strict=True):
        assert (step["pid"], step["tid"], step["ts"]) == (wait["pid"], wait["tid"], wait["ts"])
        assert wait["dur"] == pytest.approx(WAIT_S * 1e6, abs=1)
        assert step["dur"] == pytest.approx((WAIT_S + STEP_S) * 1e6, abs=1)


def test_workers_are_threads_with_a_slice_a_batch(tmp_path: Path) -> None:
    document = trace(recorded(tmp_path / "r"))
    batches = slices(document, r"batch \d+")
    names = {one["tid"]: one["args"]["name"] for one in document["traceEvents"] if one["name"] == "thread_name"}
    by_lane: dict[str, list[int]] = defaultdict(list)
    for one in batches:
        by_lane[names[one["tid"]]].append(one["args"]["batch"])
    assert by_lane == {
        "loader worker 0": list(range(0, BATCHES, 2)),
        "loader worker 1": list(range(1, BATCHES, 2)),
    }
    assert batches[0]["dur"] == pytest.approx(9000, abs=1)
    args = batches[0]["args"]
    assert (args["cpu_ms"], args["blocked_ms"], args["run_queue_ms"]) == pytest.approx((6, 2, 1))


def test_slices_of_a_lane_never_cross(tmp_path: Path) -> None:
    document = trace(recorded(tmp_path / "r"))
    lanes: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for one in slices(document, ".*"):
        lanes[one["pid"], one["tid"]].append((one["ts"], one["ts"] + one["dur"]))
    assert len(lanes) == 3
    for spans in lanes.values():
        open_ends: list[float] = []
        for begun, ended in sorted(spans, key=lambda span: (span[0], -span[1])):
            while open_ends and open_ends[-1] <= begun + 0.01:
                open_ends.pop()
            assert not open_ends or ended <= open_ends[-1] + 0.01
            open_ends.append(ended)


def test_counters_say_what_was_ready_and_how_busy_the_machine_was(tmp_path: Path) -> None:
    counters: dict[str, list[Any]] = defaultdict(list)
    for one in trace(recorded(tmp_path / "r"))["traceEvents"]:
        if one["ph"] == "C":
            counters[one["name"]].append(one["args"])
    assert counters["ready batches of loader"] == [{"batches": 1}] * BATCHES
    assert [each["cores"] for each in counters["CPU of the job"]] == pytest.approx([1.5] * 3)
    assert counters["GPU 0 utilisation"] == [{"percent": 37.0}] * 3


def test_ranks_are_lanes_of_their_own(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "r", ranks=2)
    text = exported(folder, "chrome").decode()
    assert re.search(r'"rank": 0\b', text)
    document = json.loads(text)
    assert document["distributedInfo"]["world_size"] == 2
    names = [one["args"]["name"] for one in document["traceEvents"] if one["name"] == "process_name"]
    assert [name.split(" (")[0] for name in names] == ["rank 0: train.py", "rank 1: train.py", "machine"]
    assert len({one["pid"] for one in slices(document, r"ProfilerStep#0")}) == 2


def test_hostile_names_stay_inside_their_strings(tmp_path: Path) -> None:
    plan = Plan(name=HOSTILE, batches=30, wait=WAIT_S, workers=1, fetch=Fetch(cpu=0.004))
    folder = recorded(tmp_path / "r", plan=plan)
    lanes = [one["args"]["name"] for one in trace(folder)["traceEvents"] if one["name"] == "thread_name"]
    assert f"{HOSTILE} worker 0" in lanes


def test_speedscope_has_a_profile_a_process_in_seconds(tmp_path: Path) -> None:
    document = json.loads(exported(recorded(tmp_path / "r", ranks=2), "speedscope"))
    assert document["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    assert len(document["profiles"]) == 2
    frames = document["shared"]["frames"]
    for profile in document["profiles"]:
        assert (profile["type"], profile["unit"], profile["startValue"]) == ("sampled", "seconds", 0)
        assert profile["weights"] == [30 / 25, 50 / 25]
        assert profile["endValue"] == pytest.approx(sum(profile["weights"]))
        assert len(profile["samples"]) == len(profile["weights"])
        assert all(0 <= number < len(frames) for stack in profile["samples"] for number in stack)
    stack = [frames[number] for number in document["profiles"][0]["samples"][0]]
    assert stack == [
        {"name": "thread MainThread"},
        {"name": "<module>", "file": "/home/me/train.py", "line": 50},
        {"name": "step;odd", "file": "/home/me/a b.py", "line": 7},
    ]


def test_collapsed_stacks_part_frames_by_semicolons_and_nothing_else(tmp_path: Path) -> None:
    lines = exported(recorded(tmp_path / "r"), "collapsed").decode().splitlines()
    stacks = {tuple(line.rsplit(" ", 1)[0].split(";")): int(line.rsplit(" ", 1)[1]) for line in lines}
    process = "process (1001)"
    assert stacks == {
        (process, "MainThread", "<module> (/home/me/train.py:50)", "step:odd (/home/me/a b.py:7)"): 30,
        (process, "QueueFeederThread", "run (/lib/threading.py:9)"): 50,
    }


def parsed(text: str) -> dict[str, Any]:
    parser = pytest.importorskip("prometheus_client.openmetrics.parser", reason="prometheus_client is not installed")
    return {family.name: family for family in parser.text_string_to_metric_families(text)}


def test_prometheus_reads_the_metrics(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "r")
    families = parsed(exported(folder, "openmetrics").decode())
    found = findings_of(reader.read(folder))
    wait = families["loaderprof_wait_seconds"]
    assert (wait.type, wait.unit) == ("gauge", "seconds")
    assert wait.samples[0].value == pytest.approx(WAIT_S, rel=0.01)
    assert families["loaderprof_steps"].samples[0].name == "loaderprof_steps_total"
    assert families["loaderprof_steps"].samples[0].value == BATCHES
    assert families["loaderprof_run"].samples[0].labels["bottleneck"] == found.verdict.bottleneck
    stages = {one.labels["stage"]: one.value for one in families["loaderprof_stage_seconds"].samples}
    assert stages == {each.stage: each.s_per_batch for each in found.stages if each.s_per_batch is not None}


def some_findings(name: str) -> Findings:
    run = Run(name, None, None, None, 1, None, None, None, None, None, Overhead())
    verdict = Verdict("read", "file-read", "low", "", None, None, 0.25, float("inf"))
    loader = Loader(name, None, {}, 7, None, None, None, None, None, 1)
    return Findings(run, verdict, (StageCost("read", None, 0.5),), loaders=(loader, loader))


def test_what_was_not_measured_is_no_metric_and_names_are_escaped() -> None:
    text = metrics.render(some_findings(HOSTILE))
    assert text.endswith("# EOF\n")
    families = parsed(text)
    assert "loaderprof_wait_seconds" not in families
    assert "loaderprof_steps" not in families
    assert "loaderprof_ceiling_speedup_ratio" not in families
    assert families["loaderprof_wait_ratio"].samples[0].value == 0.25
    labels = [one.labels for one in families["loaderprof_loader_batches"].samples]
    assert labels == [{"loader": HOSTILE.replace("\r", " "), "place": place} for place in ("0", "1")]


def test_pandas_readers_get_a_row_a_batch(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    table = parquet.read_table(io.BytesIO(exported(recorded(tmp_path / "r", ranks=2), "parquet"))).to_pydict()
    assert table["batch"] == list(range(BATCHES)) * 2
    assert sorted(set(table["rank"])) == [0, 1]
    assert table["wait_s"] == pytest.approx([WAIT_S] * 2 * BATCHES)
    assert table["ready_batches"] == [1.0] * 2 * BATCHES


def test_unmeasured_is_null_in_the_table(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    folder = recorded(tmp_path / "r", plan=Plan(batches=30, wait=WAIT_S))
    table = parquet.read_table(io.BytesIO(exported(folder, "parquet"))).to_pydict()
    assert table["ready_batches"] == [None] * 30


def test_without_pyarrow_it_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(RecordingError, match="pyarrow") as caught:
        exported(recorded(tmp_path / "r"), "parquet")
    assert caught.value.hint == "pip install pyarrow"


@pytest.mark.parametrize("name", ["speedscope", "collapsed"])
def test_a_recording_without_stacks_is_refused(tmp_path: Path, name: str) -> None:
    folder = Made(tmp_path / "r").finish(1.0)
    with pytest.raises(RecordingError, match="no stacks"):
        exported(folder, name)


def test_a_file_is_never_replaced_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recorded(tmp_path / "r")
    assert cli.main(["export", str(folder), "--format", "collapsed"]) == 0
    written = folder / "collapsed.txt"
    assert capsys.readouterr().out == f"{written}\n"
    written.write_text("mine")
    assert cli.main(["export", str(folder), "--format", "collapsed"]) == 2
    assert "--force" in capsys.readouterr().err
    assert written.read_text() == "mine"
    assert cli.main(["export", str(folder), "--format", "collapsed", "--force"]) == 0
    assert written.read_text() != "mine"


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "r")
    with pytest.raises(OutputError, match="cannot be written"):
        export.export(folder, "collapsed", output=str(tmp_path / "no" / "such" / "file"), force=False)


def test_gz_is_compressed_and_the_same_every_time(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "r")
    for name in ("one.json.gz", "two.json.gz"):
        export.export(folder, "chrome", output=str(tmp_path / name), force=False)
    packed = (tmp_path / "one.json.gz").read_bytes()
    assert gzip.decompress(packed) == exported(folder, "chrome")
    assert packed == (tmp_path / "two.json.gz").read_bytes()


def test_standard_output_gets_the_export_and_nothing_else(tmp_path: Path, capfdbinary: Any) -> None:
    folder = recorded(tmp_path / "r")
    assert cli.main(["export", str(folder), "--format", "openmetrics", "-o", "-"]) == 0
    assert capfdbinary.readouterr().out == exported(folder, "openmetrics")
    assert not (folder / "openmetrics.txt").exists()


def test_an_unknown_format_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(tmp_path), "--format", "xml"]) == 2
    assert "chrome" in capsys.readouterr().err

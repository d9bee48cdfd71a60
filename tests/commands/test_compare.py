"""`compare`: what differs is told with its size, what does not is told as not significant."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import real
from golden_sentences import Check
from made import Fetch, Made, Plan, one_loop

from loaderprof.cli import main
from loaderprof.commands import compare
from loaderprof.report.comparison import Comparison, Measure, render

FETCH = Fetch(cpu=0.01, blocked=0.19, collate=0.002, operators=[("builtins.open", 0.19, 0.005)], deep_every=5)
JITTER = np.random.default_rng(0).gamma(20, 1 / 20, 1000)


def plan(seed: int, **changes: object) -> Plan:
    """About 30 + 70 ms a step; the runs of two seeds differ by chance alone."""
    usual = Plan(
        wait=lambda batch: round(0.03 * float(JITTER[batch + 150 * seed]), 6),
        step=0.07,
        workers=2,
        batches=120,
        fetch=FETCH,
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


def compared(tmp_path: Path, before: Plan, after: Plan) -> Comparison:
    a, b = one_loop(tmp_path / "a", before), one_loop(tmp_path / "b", after)
    return compare.compare(compare.side(a.folder), compare.side(b.folder))


def named(measures: tuple[Measure, ...], name: str) -> Measure:
    return next(each for each in measures if each.name == name)


def test_two_runs_of_one_job_differ_in_nothing_significant(tmp_path: Path, said: Check) -> None:
    comparison = compared(tmp_path, plan(1), plan(2))
    assert comparison.settings == ()
    assert comparison.speed.ratio is not None
    assert not comparison.speed.ratio.significant
    text = render(comparison)
    said("two runs of one job", text)
    line = next(line for line in text.splitlines() if line.startswith("  speed"))
    assert "~" in line


def test_a_faster_run_is_told_with_what_was_set_and_what_got_faster(tmp_path: Path, said: Check) -> None:
    facts = {"num_workers": 4}
    comparison = compared(tmp_path, plan(1, wait=0.13), plan(2, wait=0.03, workers=4, facts=facts))
    assert {(each.name, each.before, each.after) for each in comparison.settings} == {("loader.num_workers", 2, 4)}
    speed, wait = comparison.speed, named(comparison.times, "waiting for its batch")
    assert (speed.unit, speed.before, speed.after) == ("samples/s", pytest.approx(80), pytest.approx(160))
    assert speed.ratio is not None
    assert speed.ratio.significant
    assert speed.ratio.low < 2.0 < speed.ratio.high
    assert wait.ratio is not None
    assert wait.ratio.value == pytest.approx(0.03 / 0.13)
    said("a faster run", render(comparison))


def test_a_stage_that_took_twice_as_long(tmp_path: Path) -> None:
    slow = replace(FETCH, blocked=0.39, collate=0.004, operators=[("builtins.open", 0.39, 0.005)])
    comparison = compared(tmp_path, plan(1), plan(2, fetch=slow))
    read = named(comparison.stages, "read")
    assert read.ratio is not None
    assert read.ratio.significant
    assert read.ratio.value == pytest.approx(2.0, rel=0.1)


def test_a_stage_seen_in_too_few_batches_has_no_ratio(tmp_path: Path) -> None:
    rare = replace(FETCH, deep_every=40)
    assert named(compared(tmp_path, plan(1, fetch=rare), plan(2, fetch=rare)).stages, "read").ratio is None


def test_a_short_run_has_numbers_but_no_interval(tmp_path: Path, said: Check) -> None:
    comparison = compared(tmp_path, plan(1), plan(2, batches=10))
    assert comparison.speed.after is not None
    assert comparison.speed.ratio is None
    assert comparison.notes
    said("a short run", render(comparison))


def test_steps_are_counted_where_the_size_of_a_batch_is_unknown(tmp_path: Path) -> None:
    comparison = compared(tmp_path, plan(1, facts={"batch_size": None}), plan(2))
    assert comparison.speed.unit == "steps/s"
    assert comparison.speed.after == pytest.approx(10, rel=0.05)


def test_another_loader_is_compared_by_its_name(tmp_path: Path) -> None:
    folders = []
    for name, workers in (("a", 0), ("b", 1)):
        made = Made(tmp_path / name)
        process = made.process()
        ended = made.loop(process, plan(1))
        check = Plan(name="valid", training=False, workers=workers, wait=0.01, step=0.01)
        made.finish(made.loop(process, check, begun=ended + 1))
        folders.append(made.folder)
    comparison = compare.compare(*map(compare.side, folders))
    assert "valid.num_workers" in [each.name for each in comparison.settings]


def test_a_recording_without_a_loader_can_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Made(tmp_path / "bare")
    made.process()
    one_loop(tmp_path / "a", plan(1))
    assert main(["compare", str(tmp_path / "a"), str(made.finish(1.0))]) == 0
    assert "B took no batch from a loader" in capsys.readouterr().out


def test_json_holds_the_same_and_no_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_loop(tmp_path / "a", plan(1))
    one_loop(tmp_path / "b", plan(2, wait=0.13))
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0

    def refuse(text: str) -> float:
        raise AssertionError(text)

    data = json.loads(capsys.readouterr().out, parse_constant=refuse)
    speed = data["measures"][0]
    assert (speed["name"], speed["significant"]) == ("speed", True)
    assert speed["ratio"]["low"] < 0.5 < speed["ratio"]["high"]
    assert data["verdict"]["after"]["bottleneck"] == "read"


def test_what_is_no_recording_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_loop(tmp_path / "a", plan(1))
    (tmp_path / "b").mkdir()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "is no recording" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    folder = str(real.recording())
    done = real.loaderprof("compare", folder, folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  speed .*~.* \(1\.0", done.stdout, re.MULTILINE)
    assert "times as" not in done.stdout

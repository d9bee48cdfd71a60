"""`verify`: real pairs of runs, what is refused in one sentence, and a result that survives being interrupted."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import real
from golden_sentences import Check

from loaderprof.cli import main
from loaderprof.commands import verify
from loaderprof.conclude import findings_of
from loaderprof.errors import UsageError
from loaderprof.findings import Advice, Costs, Expected, Findings, Measured
from loaderprof.measure import rerun, verified
from loaderprof.measure.rerun import Pace, TrialError
from loaderprof.measure.verified import Verified
from loaderprof.recording import reader
from loaderprof.recording.meta import JobFacts

EXPECTED = Expected(1.9, 1.7, 2.1, None)
WORKERS = Advice("num-workers", "Raise", "", None, {"num_workers": 4}, {}, EXPECTED, Costs())
PREFETCH = replace(WORKERS, id="prefetch-factor", change={"prefetch_factor": 4})
CACHE = replace(WORKERS, id="cache-in-memory", change={"kind": "cache"})
BOTH = replace(WORKERS, id="num-workers+prefetch-factor", change={"num_workers": 4, "prefetch_factor": 4})


def copy(folder: Path, tmp_path: Path) -> Path:
    """Return a copy of a recording; its job still runs where it ran."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def found() -> Findings:
    """Findings with an advice of each kind."""
    return replace(findings_of(reader.read(real.recording())), advice=(CACHE, WORKERS, PREFETCH, BOTH))


@pytest.mark.slow
def test_a_change_is_measured_told_kept_and_reported(tmp_path: Path) -> None:
    folder = copy(real.recording(), tmp_path)
    done = real.loaderprof("verify", str(folder), "--change", "num-workers", "--runs", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = r"num_workers=\d+: .*\d\.\d+ (± \d+\.\d+|\(.+\)) times as fast \(predicted \d\.\d+ ± \d\.\d+\), 2 pairs\n"
    assert re.fullmatch(line, done.stdout)
    assert re.fullmatch(
        r"running \S+ train.py in .+, 4 times, at most 1 min 00 s each\n(  The pairs differ .+\n)?", done.stderr
    )
    assert "pair 1 of" not in done.stderr  # no progress where stderr is no terminal
    assert (folder / "verify.log").read_text().count("trained") == 4
    kept = json.loads((folder / "verified.json").read_text())["verified"][0]
    # Samples waited for one after another come at twice the rate from two workers, less the cost of a busy machine.
    assert all(after > 1.1 * before for before, after in kept["pairs"])
    report = json.loads(real.loaderprof("report", str(folder), "--json", cwd=tmp_path).stdout)
    shown = {each["id"]: each["measured"] for each in report["advice"]}
    assert shown["num-workers"] == kept["measured"]
    assert shown["num-workers"]["runs"] == 2


@pytest.mark.slow
def test_settings_of_ones_own_are_predicted_and_measured(tmp_path: Path) -> None:
    folder = copy(real.recording(), tmp_path)
    typed = ["--set", "num_workers=2", "--set", "prefetch_factor=4", "--runs", "1"]
    done = real.loaderprof("verify", str(folder), *typed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = r"num_workers=2, prefetch_factor=4: (\d\.\d+) times as fast \(predicted (\d\.\d+) .+\), 1 pair; one pair has no .+\n"
    in_words = re.fullmatch(line, done.stdout)
    assert in_words, done.stdout
    # Twice as many wait for their samples at once.
    assert min(map(float, in_words.groups())) > 1.1


@pytest.mark.slow
def test_a_job_that_fails_with_the_change_is_told_and_not_scored(tmp_path: Path) -> None:
    folder = copy(real.recording("--alone"), tmp_path)
    done = real.loaderprof("verify", str(folder), "--change", "num-workers", "--runs", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.search(r"the job failed with exit code 1 \(num_workers=\d+\): no workers here", done.stderr)
    assert "Traceback" not in done.stderr
    assert not (folder / "verified.json").exists()


@pytest.mark.slow
def test_ctrl_c_ends_the_job_too(tmp_path: Path) -> None:
    folder = copy(real.recording(), tmp_path)
    command = [sys.executable, "-m", "loaderprof", "verify", str(folder), "--change", "num-workers"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        jobs = wait_for(
            lambda: [job for job in psutil.Process(process.pid).children() if "train.py" in str(job.cmdline())]
        )
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert (out, "nothing was measured" in err, "Traceback" in err) == ("", True, False)
    assert not any(job.is_running() and job.status() != psutil.STATUS_ZOMBIE for job in jobs)


def wait_for(condition: Any) -> Any:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError("it never came")


def pretend(monkeypatch: pytest.MonkeyPatch, pairs: Sequence[Any]) -> None:
    """Give the speeds of these pairs, raising those that are errors, in place of running the job."""
    coming = iter([one for pair in pairs for one in (pair if isinstance(pair, tuple) else (pair,))])

    def pace(*_: object) -> Pace:
        one = next(coming)
        if isinstance(one, BaseException):
            raise one
        return Pace(one, None)

    monkeypatch.setattr(rerun, "measured_pace", pace)


def test_an_interrupted_measurement_keeps_the_pairs_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(real.recording(), tmp_path)
    pretend(monkeypatch, [(100.0, 180.0), (100.0, 190.0), KeyboardInterrupt()])
    assert main(["verify", str(folder), "--change", "num-workers", "--runs", "5", "--precision", "0"]) == 130
    assert "times as fast" in capsys.readouterr().out
    assert verified.measured(folder)["num-workers"].runs == 2
    shown = json.loads((folder / "findings.json").read_text())["advice"]
    assert next(each for each in shown if each["id"] == "num-workers")["measured"]["runs"] == 2


def test_a_later_pair_that_fails_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(real.recording(), tmp_path)
    pretend(monkeypatch, [(100.0, 180.0), TrialError("the job failed"), (100.0, 190.0)])
    assert main(["verify", str(folder), "--change", "num-workers", "--runs", "3"]) == 0
    said = capsys.readouterr()
    assert "2 pairs" in said.out
    assert "pair 2 does not count: the job failed" in said.err


def test_pairs_that_disagree_are_told_to_be_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(real.recording(), tmp_path)
    pretend(monkeypatch, [(100.0, 180.0), (100.0, 90.0), (100.0, 300.0)])
    assert main(["verify", str(folder), "--change", "num-workers", "--runs", "3"]) == 0
    said = capsys.readouterr()
    assert "no significant difference" in said.out
    assert "--runs 6" in said.err


@pytest.mark.parametrize(("precision", "pairs"), [("5", 3), ("1.5", 4), ("0", 5)])
def test_pairs_end_as_soon_as_the_ratio_is_known_well_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], precision: str, pairs: int
) -> None:
    folder = copy(real.recording(), tmp_path)
    pretend(monkeypatch, [(100.0, 180.0), (100.0, 183.0), (100.0, 181.5), (100.0, 181.5), (100.0, 181.5)])
    typed = ["verify", str(folder), "--change", "num-workers", "--runs", "5", "--precision", precision]
    assert main(typed) == 0
    assert f"{pairs} pairs" in capsys.readouterr().out


def test_one_pair_is_told_without_an_interval_and_not_shown_as_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(real.recording(), tmp_path)
    pretend(monkeypatch, [(100.0, 180.0)])
    assert main(["verify", str(folder), "--change", "num-workers", "--runs", "1"]) == 0
    assert "1.80 times as fast" in capsys.readouterr().out
    assert verified.measured(folder) == {}


def test_words(said: Check) -> None:
    plan = verify.Plan("num-workers", {"num_workers": 4}, Expected(1.9, 1.7, 2.1, None), 3, 60.0)
    pairs = [(100.0, 181.0), (100.0, 183.0), (100.0, 185.0)]
    text = verify.result_line(plan, pairs)
    said("faster", text)
    assert all(words in text for words in ("num_workers=4", "1.83 ± 0.05", "1.9 ± 0.2", "3 pairs"))
    same = [(100.0, 99.0), (100.0, 101.0), (100.0, 100.0)]
    text = verify.result_line(replace(plan, expected=None), same)
    said("no difference", text)
    assert "1.00 ±" in text


@pytest.mark.parametrize(
    ("ids", "id_", "change"),
    [
        ([], "num-workers", WORKERS.change),
        (["prefetch-factor"], "prefetch-factor", PREFETCH.change),
        (["2"], "num-workers", WORKERS.change),
        (["num-workers", "prefetch-factor"], BOTH.id, BOTH.change),
        (["prefetch-factor", "num-workers", "2"], BOTH.id, BOTH.change),
        ([BOTH.id], BOTH.id, BOTH.change),
        (["2+3"], BOTH.id, BOTH.change),
    ],
)
def test_what_is_measured(found: Findings, ids: list[str], id_: str, change: dict[str, Any]) -> None:
    plan = verify.plan_of(found, ids, 3, 60.0, "seen")
    assert (plan.id, plan.change, plan.expected) == (id_, change, EXPECTED)


def test_a_combination_that_is_no_advice_has_an_id_and_no_prediction(found: Findings) -> None:
    plan = verify.plan_of(replace(found, advice=(WORKERS, PREFETCH)), ["1", "2"], 3, 60.0, "seen")
    assert (plan.id, plan.change, plan.expected) == ("num-workers+prefetch-factor", BOTH.change, None)


@pytest.mark.parametrize("id_", ["cache-in-memory", "no-such"])
def test_what_cannot_be_measured_is_refused(found: Findings, said: Check, id_: str) -> None:
    with pytest.raises(UsageError) as error:
        verify.plan_of(found, [id_], 3, 60.0, "seen")
    assert error.value.exit_code == 2
    said(f"--change {id_}", f"{error.value.message}\n{error.value.hint}")


def test_without_a_setting_to_try_compare_is_named(found: Findings) -> None:
    with pytest.raises(UsageError) as error:
        verify.plan_of(replace(found, advice=(CACHE,)), [], 3, 60.0, "seen")
    assert "loaderprof compare seen CHANGED" in error.value.hint


def test_a_refused_change_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], said: Check) -> None:
    folder = copy(real.recording(), tmp_path)
    assert main(["verify", str(folder), "--change", "no-such"]) == 2
    assert "'no-such'" in capsys.readouterr().err
    assert main(["verify", str(folder), "--runs", "0"]) == 2
    assert main(["verify", str(folder), "--set", "workers=4"]) == 2
    capsys.readouterr()
    assert main(["verify", str(folder), "--set", "num_workers=4", "--change", "1"]) == 2
    said("--set and --change", capsys.readouterr().err)
    assert not (folder / "verify.log").exists()


def test_run_records_how_it_was_started(tmp_path: Path) -> None:
    assert reader.read(real.recording()).meta.job == JobFacts(launcher=False)


@pytest.mark.parametrize(("change", "code"), [("persistent_workers=true", 1), ("num_workers=2", 0)])
def test_a_change_at_the_borders_of_epochs_needs_whole_ones(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    said: Check,
    change: str,
    code: int,
) -> None:
    folder = copy(real.recording(), tmp_path)
    pretend(monkeypatch, [(100.0, 100.0)])
    assert main(["verify", str(folder), "--set", change, "--runs", "1"]) == code
    out, err = capsys.readouterr()
    if code:
        assert out == ""
        said("no whole epoch", err.partition("\n")[2])
    else:
        assert "1.00 times as fast" in out


def test_a_result_belongs_to_the_change_that_was_measured(tmp_path: Path, found: Findings) -> None:
    seen = Measured(1.83, 1.7, 1.9, 3)
    verified.save(tmp_path, Verified("num-workers", {"num_workers": 2}, ((1.0, 2.0),), None))
    verified.save(tmp_path, Verified("prefetch-factor", {"prefetch_factor": 4}, ((1.0, 2.0),), seen))
    verified.save(tmp_path, Verified("num-workers", {"num_workers": 8}, ((1.0, 2.0),), seen))
    assert len(verified.load(tmp_path)) == 2
    shown = {each.id: each.measured for each in verified.joined(found, tmp_path).advice}
    # num_workers=8 was measured, num_workers=4 is advised.
    assert (shown["num-workers"], shown["prefetch-factor"], shown["cache-in-memory"]) == (None, seen, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        '{"schema_version": 1}',
        '{"schema_version": 2, "verified": []}',
        '{"schema_version": 1, "verified": [7, {"id": "a", "change": {}, "pairs": [[1, "x"]], "measured": null}]}',
        '{"schema_version": 1, "verified": [{"id": "a", "change": {}, "pairs": [], '
        '"measured": {"speedup": 1, "low": NaN, "high": 2, "runs": 2}}]}',
    ],
)
def test_a_damaged_result_is_left_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "verified.json").write_text(text)
    assert verified.load(tmp_path) == ()

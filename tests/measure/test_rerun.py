"""A recorded job as it is run again, and the throughput of such a run: recordings made by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from golden_sentences import Check
from made import Fetch, Made, Plan, one_loop

from loaderprof.errors import LoaderprofError
from loaderprof.measure import rerun
from loaderprof.measure.rerun import LoaderTarget, Pace, TrialError
from loaderprof.recording import reader

TARGET = LoaderTarget("loader", "/home/me/train.py:50")


def recorded(tmp_path: Path, **meta: Any) -> reader.Recording:
    (tmp_path / "train.py").write_text("")
    usual = {"cwd": str(tmp_path), "job": {"launcher": False, "settings": {}}, "exit_code": 0}
    return one_loop(tmp_path / "seen", Plan(), **{**usual, **meta})


@pytest.mark.parametrize(
    ("typed", "launcher", "command"),
    [
        (["train.py", "-m", "x"], False, [sys.executable, "train.py", "-m", "x"]),
        (["-m", "package.train", "--lr", "1"], False, [sys.executable, "-m", "package.train", "--lr", "1"]),
        (
            [sys.executable, "-m", "torch.distributed.run", "train.py"],
            True,
            [sys.executable, "-m", "torch.distributed.run", "train.py"],
        ),
    ],
)
def test_a_job_is_run_again_as_it_was_typed(
    tmp_path: Path, typed: list[str], launcher: bool, command: list[str]
) -> None:
    job = {"launcher": launcher, "settings": {"num_workers": 1}}
    again = rerun.recorded_job(recorded(tmp_path, command=typed, job=job))
    assert (list(again.command), again.cwd, again.settings) == (command, tmp_path, {"num_workers": 1})


@pytest.mark.parametrize(
    "meta",
    [
        {"job": None},
        {"command": ["train.py", "--token", "***"]},
        {"command": ["gone.py"]},
        {"cwd": "/no/such/folder"},
    ],
    ids=str,
)
def test_a_job_that_cannot_run_again(tmp_path: Path, said: Check, meta: dict[str, Any]) -> None:
    before = Path.cwd()
    with pytest.raises(LoaderprofError) as error:
        rerun.recorded_job(recorded(tmp_path, **{"command": ["train.py"], **meta}))
    said(f"recorded with {meta}", f"{error.value.message}\n{error.value.hint}")
    assert Path.cwd() == before


def test_the_steady_pace_leaves_the_start_out(tmp_path: Path) -> None:
    seen = one_loop(tmp_path / "seen", Plan(wait=0.01, step=0.01, startup=3.0))
    assert rerun.pace(seen, TARGET, {}) == Pace(steady=pytest.approx(800), epochs=None)


def test_whole_epochs_hold_their_borders(tmp_path: Path) -> None:
    plan = Plan(wait=0.01, step=0.01, startup=0.5, shutdown=0.3, gap=7.0, epochs=3, workers=2, fetch=Fetch(cpu=0.01))
    pace = rerun.pace(one_loop(tmp_path / "seen", plan), TARGET, {})
    assert pace.steady == pytest.approx(800)
    assert pace.epochs == pytest.approx(80 * 16 / (80 * 0.02 + 0.5 + 0.3))


def test_ranks_add_up(tmp_path: Path) -> None:
    made = Made(tmp_path / "seen")
    ended = [made.loop(made.process(environment={"RANK": rank}), Plan(wait=0.01)) for rank in ("0", "1")]
    made.finish(max(ended))
    assert rerun.pace(made.read(), TARGET, {}).steady == pytest.approx(1600)


def test_too_few_steps_are_no_pace(tmp_path: Path) -> None:
    assert rerun.pace(one_loop(tmp_path / "seen", Plan(batches=12)), TARGET, {}) == Pace(None, None)


def test_a_change_that_did_not_arrive_is_no_measurement(tmp_path: Path) -> None:
    seen = one_loop(tmp_path / "seen", Plan(workers=2))
    rerun.pace(seen, TARGET, {"num_workers": 2, "loader.prefetch_factor": 2})
    with pytest.raises(TrialError, match="num_workers=4 did not reach the loader loader"):
        rerun.pace(seen, TARGET, {"num_workers": 4})


def test_a_run_that_never_used_the_loader_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(TrialError, match="took no batch from other"):
        rerun.pace(one_loop(tmp_path / "seen", Plan()), LoaderTarget("other", None), {})

"""Windows of one stream: whatever the settings do, the loop gets what it would have got, and the supervisor is told."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from loaderprof.measure import tuned_job as steered_module
from loaderprof.measure.tuned_job import EndedError, FailedError, NoWindowError, RefusedError, Span, Steered

PROGRAM = Path(__file__).parents[1] / "programs" / "streams.py"
SHORT = Span(8, 0.05, 2.0)
ORDERS = (
    {"num_workers": 2, "prefetch_factor": 2},
    {"num_workers": 0},
    {"num_workers": 1, "prefetch_factor": 8},
    {"num_workers": 2, "prefetch_factor": 1, "persistent_workers": True},
    {"num_workers": 2, "prefetch_factor": 1, "persistent_workers": True},
)
MORE = ("short", "plain", "persistent", "batch_sampler", "single", "generator", "made_anew", "breaks", "nested")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[IO[bytes]]:
    with open(tmp_path / "log", "w+b") as file:
        yield file


@contextmanager
def bare(kind: str) -> Iterator[Callable[[], list[str]]]:
    """Run the job by itself beside what is tested, and hand out a function that returns what it prints."""
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:

        def lines() -> list[str]:
            stdout, stderr = process.communicate(timeout=100)
            assert process.returncode == 3, stderr
            return stdout.splitlines()

        yield lines


def printed(log: IO[bytes]) -> list[str]:
    return Path(log.name).read_text().splitlines()


def job(log: IO[bytes], *arguments: str, loader: str | None = None) -> Steered:
    return Steered([sys.executable, str(PROGRAM), *arguments], PROGRAM.parent, log, loader)


@pytest.mark.parametrize("kind", ["workers", *(pytest.param(kind, marks=pytest.mark.slow) for kind in MORE)])
def test_the_loop_gets_every_batch_once_and_in_order(
    kind: str, log: IO[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPOCHS", "12" if kind == "short" else "2")
    span = Span(8, 0.0, 2.0, by_epoch=True) if kind == "short" else SHORT
    windows = []
    with bare(kind) as alone, job(log, kind) as steered:
        # Once the job has ended, a further window would start it again.
        for order in itertools.cycle(ORDERS):
            try:
                windows.append(steered.measure(order, span, 60.0))
            except NoWindowError:
                break
            if steered.starts > 1 or len(windows) >= 12:
                break
        code = steered.leave(ORDERS[0])
        expected = alone()
    assert printed(log)[: len(expected)] == expected
    assert code == 3
    assert len(windows) >= 2
    assert {window["settings"]["num_workers"] for window in windows} >= {0, 2}


@pytest.mark.slow
def test_without_an_order_each_batch_still_comes_once(log: IO[bytes]) -> None:
    with bare("plain") as alone, job(log, "plain") as steered:
        seen = steered.measure({"num_workers": 2, "in_order": False}, SHORT, 60.0)
        assert steered.leave({"num_workers": 1, "in_order": False}) == 3
        expected = alone()
    assert seen["settings"]["in_order"] is False
    columns = [[line.split()[at] for at in (2, 4, 5)] for line in printed(log)]
    assert columns == [[line.split()[at] for at in (2, 4, 5)] for line in expected]


@pytest.mark.slow
def test_a_window_says_what_was_seen(log: IO[bytes]) -> None:
    with job(log, "plain") as steered:
        steered.measure({}, SHORT, 60.0)
        seen = steered.measure({"num_workers": 2}, SHORT, 60.0)
        facts = steered.facts
    assert not seen["cut"]
    assert seen["batches"] == seen["group"] * len(seen["step_ns"]) >= 8
    # Four samples of 1 ms each, and no worker makes two batches at once.
    assert sum(seen["step_ns"]) + sum(seen["wait_ns"]) > 0.8 * seen["batches"] * 4e6 / 2
    assert seen["size"] == [4 * 8 * 4, 1]
    assert seen["open_ns"] > 0
    # It is made in a function, which returns it.
    assert (facts["facts"]["name"], facts["facts"]["assigned"]) == ("loader", None)
    assert facts["length"] == 100
    assert facts["present"] == {
        "num_workers": 0,
        "prefetch_factor": None,
        "in_order": True,
        "persistent_workers": False,
        "pin_memory": False,
    }


@pytest.mark.slow
def test_short_epochs_are_measured_whole(log: IO[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPOCHS", "40")
    with job(log, "short") as steered:
        cut = steered.measure({}, Span(1000, 0.0, 60.0), 60.0)
        plain = steered.measure({"num_workers": 1}, Span(8, 0.0, 60.0, by_epoch=True), 60.0)
        kept = [
            steered.measure({"num_workers": 1, "persistent_workers": True}, Span(16, 0.0, 60.0, by_epoch=True), 60.0)
            for _ in range(2)
        ]
    assert cut["cut"]
    assert cut["batches"] < 8
    assert [count for _, count in plain["epochs"]] == [8]
    assert [[count for _, count in seen["epochs"]] for seen in kept] == [[8, 8], [8, 8]]
    # A worker that starts at every epoch is part of each; one that is kept started before the first.
    assert plain["open_ns"] > 5 * max(seen["open_ns"] for seen in kept)


@pytest.mark.parametrize(
    ("arguments", "environment", "reason"),
    [
        (["iterable"], {}, "an iterable dataset is split over its workers"),
        (["plain"], {"WORLD_SIZE": "2"}, "several ranks"),
    ],
)
def test_what_cannot_be_cut_is_refused_and_left_alone(
    log: IO[bytes], monkeypatch: pytest.MonkeyPatch, arguments: list[str], environment: dict[str, str], reason: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with job(log, *arguments) as steered, pytest.raises(RefusedError, match=reason):
        steered.measure({}, SHORT, 60.0)


def test_a_job_without_the_loader_is_refused(log: IO[bytes]) -> None:
    with Steered([sys.executable, "-c", "pass"], Path(), log, None) as steered, pytest.raises(RefusedError):
        steered.measure({}, SHORT, 60.0)


def test_a_job_that_only_evaluates_is_refused(log: IO[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steered_module, "WAIT_S", 0.2)
    script = tmp_path / "evaluates.py"
    script.write_text(
        "import torch\nfrom torch.utils.data import DataLoader\n"
        "with torch.no_grad():\n    while True:\n        for batch in DataLoader(list(range(40))):\n            pass\n"
    )
    with Steered([sys.executable, str(script)], tmp_path, log, None) as steered, pytest.raises(RefusedError):
        steered.measure({}, SHORT, 60.0)


@pytest.mark.slow
def test_another_loader_may_be_meant(log: IO[bytes], tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(
        "from torch.utils.data import DataLoader\n"
        "first = DataLoader(list(range(40)))\nsecond = DataLoader(list(range(4000)), batch_size=2)\n"
        "for loader in (first, second):\n    for batch in loader:\n        pass\n"
    )
    with Steered([sys.executable, str(script)], tmp_path, log, "second") as steered:
        assert steered.measure({}, Span(8, 0.0, 1.0), 60.0)["size"][0] == 16
        assert steered.facts["facts"]["assigned"] == "second"


@pytest.mark.slow
def test_settings_under_which_the_job_fails_are_told_and_the_next_ones_tried(log: IO[bytes]) -> None:
    with job(log, "plain", "no_workers_here") as steered:
        steered.measure({}, SHORT, 60.0)
        with pytest.raises(FailedError, match="exit code 1"):
            steered.measure({"num_workers": 1}, SHORT, 60.0)
        assert steered.measure({}, SHORT, 60.0)["batches"] >= 8
        assert steered.starts == 2
    assert "not in a worker" in Path(log.name).read_text()


def test_a_job_that_ends_first_is_told_apart(log: IO[bytes], tmp_path: Path) -> None:
    script = tmp_path / "once.py"
    script.write_text("from torch.utils.data import DataLoader\nfor batch in DataLoader(list(range(40))):\n    pass\n")
    with Steered([sys.executable, str(script)], tmp_path, log, None) as steered:
        assert steered.measure({}, Span(100, 0.0, 1.0), 60.0)["cut"]
        with pytest.raises(EndedError):
            steered.measure({}, Span(100, 0.0, 1.0, by_epoch=True), 60.0)


def test_a_job_that_stands_still_is_ended(log: IO[bytes], tmp_path: Path) -> None:
    script = tmp_path / "stuck.py"
    script.write_text(
        "import time\nfrom torch.utils.data import DataLoader\n"
        "for batch in DataLoader(list(range(40))):\n    time.sleep(1000)\n"
    )
    with Steered([sys.executable, str(script)], tmp_path, log, None) as steered:
        with pytest.raises(FailedError, match="no window within"):
            steered.measure({}, SHORT, 0.2)
        assert steered.pid is None


def test_only_jobs_under_tune_are_touched() -> None:
    program = "import sys, torch.utils.data; sys.exit('loaderprof.capture.hooks.tuned_loader' in sys.modules)"
    from loaderprof.capture import launch

    environment = launch.job_environment(Path("/nowhere"), {}, os.environ)
    assert subprocess.run([sys.executable, "-c", program], env=environment, timeout=60, check=False).returncode == 0

"""Loops whose batches are too quick to stamp each: one in K is, the others are summed, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import real

from loaderprof.analyze.loop import Loop
from loaderprof.analyze.timeline import build
from loaderprof.recording import reader

# Batches are summed where stamping takes more than 3 % of one (`STAMP_NS`, `STAMP_MOST`): below 5 ms, and surely below this.
QUICK_S = 0.004

SCRIPT = """
import sys, time
import torch
from torch.utils.data import DataLoader, Dataset

SAMPLE_S, STEP_S, COUNT = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[4])

def busy(seconds):
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass

class Quick(Dataset):
    def __len__(self):
        return COUNT
    def __getitem__(self, index):
        busy(SAMPLE_S)
        return index

if __name__ == "__main__":
    train_loader = DataLoader(Quick(), batch_size=1, num_workers=int(sys.argv[3]), persistent_workers=sys.argv[3] != "0")
    weights = torch.zeros(1, requires_grad=True)
    begun, seen = time.perf_counter(), []
    for epoch in range(3):
        for batch in train_loader:
            weights.sum().backward()
            busy(STEP_S)
            seen += batch.tolist()
    print(time.perf_counter() - begun, seen == 3 * list(range(COUNT)))
"""


def ran(
    folder: Path, sample_s: float, step_s: float, workers: int, count: int, script: str = SCRIPT, options: str = ""
) -> tuple[Loop, float, list[str]]:
    """Return the loop as recorded, the seconds that the script saw, and the notes of the findings."""
    (folder / "train.py").write_text(script)
    typed = ["train.py", *map(str, (sample_s, step_s, workers, count))]
    done = real.loaderprof("run", "--no-html", "--no-status", "-o", "seen", *options.split(), *typed, cwd=folder)
    assert done.returncode == 0, done.stderr
    seconds, all_there = done.stdout.split()
    assert all_there == "True"
    notes = json.loads((folder / "seen" / "findings.json").read_text())["run"]["notes"]
    return build(reader.read(folder / "seen")).loops[0], float(seconds), notes


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_quick_batches_are_summed_and_all_of_their_time_is_known(tmp_path: Path, workers: int) -> None:
    loop, seconds, notes = ran(tmp_path, 0.0004, 0.0004, workers, 900)
    assert loop.batches == 2700
    assert [epoch.batches for epoch in loop.epochs] == [900] * 3
    if seconds > 2700 * QUICK_S:
        pytest.skip(f"on this busy machine a batch took {seconds / 2700 * 1e3:.1f} ms, which is not quick")
    stamped = loop.count == 1
    assert stamped.sum() < 2700 / 2
    # The beginning of a loader is stamped, and a little of each later epoch.
    assert stamped[:60].all()
    assert all(stamped[loop.position == place].all() for place in range(8 if workers else 2))
    assert loop.span_s == pytest.approx(seconds, rel=0.1)
    # The steps that were stamped are as long as the others, and known as well: they keep the loop on a core.
    usual = np.median((loop.step / loop.count)[~stamped])
    assert np.median(loop.step[stamped]) == pytest.approx(usual, rel=0.3)
    assert loop.step[stamped].min() > 0.00039
    message = stamped & np.isfinite(loop.step_cpu) & np.isfinite(loop.step_runq)
    assert np.median(loop.step_cpu[message]) == pytest.approx(np.median((loop.step - loop.step_runq)[message]), rel=0.3)
    assert len(loop.made.wall) > 20
    assert np.median(loop.made.wall) > 0.00039
    assert any("are so quick" in note for note in notes)


@pytest.mark.slow
def test_what_was_summed_before_an_epoch_is_left_is_that_epochs(tmp_path: Path) -> None:
    """On workers that are kept the next epoch goes on with the same iterator."""
    left = SCRIPT.replace("for batch in train_loader:", "for number, batch in enumerate(train_loader):").replace(
        "seen += batch.tolist()", "seen += batch.tolist()\n            if number == 400: break"
    )
    loop, _, _ = ran(tmp_path, 0.0004, 0.0004, 1, 600, left.replace("list(range(COUNT))", "list(range(401))"))
    # Of the last epoch what was not yet written when it was left may be missing.
    assert [epoch.batches for epoch in loop.epochs[:2]] == [401, 401]
    assert 330 < loop.epochs[2].batches <= 401
    assert (np.diff(loop.asked) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_all_is_kept_where_that_is_asked(tmp_path: Path, workers: int) -> None:
    loop, _, _ = ran(tmp_path, 0.0004, 0.0004, workers, 300, options="--keep")
    assert loop.batches == 900
    assert (loop.count == 1).all()
    assert len(loop.made.wall) == 900
    assert loop.made.count.sum() == 900


@pytest.mark.slow
def test_less_is_seen_for_less(tmp_path: Path) -> None:
    (tmp_path / "less").mkdir()
    (tmp_path / "more").mkdir()
    less, _, _ = ran(tmp_path / "less", 0.0004, 0.0004, 0, 600, options="--max-overhead 0.1%")
    more, _, _ = ran(tmp_path / "more", 0.0004, 0.0004, 0, 600, options="--max-overhead=20")
    assert less.batches == more.batches == 1800
    assert (less.count == 1).sum() < 100
    assert (more.count == 1).sum() == 1800


@pytest.mark.slow
def test_slow_batches_are_stamped_each(tmp_path: Path) -> None:
    loop, _, notes = ran(tmp_path, 0.011, 0.0001, 0, 60)
    assert (loop.count == 1).all()
    # A busy machine has its own note.
    assert not any("are so quick" in note for note in notes)


@pytest.mark.slow
def test_datasets_made_anew_share_what_timing_in_depth_may_cost(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("""
import time
from torch.utils.data import DataLoader, Dataset

class Slow(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        time.sleep(0.006)
        return index

for dataset in [Slow() for _ in range(150)]:
    for batch in DataLoader(dataset):
        pass
""")
    done = real.loaderprof("run", "--no-html", "--no-status", "-o", "seen", "train.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = reader.read(tmp_path / "seen").tables["fetch"]
    deep = int((made["flags"] & 1).sum())
    # Ten seconds' worth of it is there at the beginning, of which a batch takes half a second or one.
    assert 0 < deep < 100

"""The file behind a sample: by name in the recording, and on the page beside the slowest samples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from real import loaderprof

import loaderprof as package

SCRIPT = """
import pathlib, sys
import numpy as np
from torch.utils.data import DataLoader, Dataset

HOW = {"open": lambda name: open(name, "rb").read(), "path": lambda name: pathlib.Path(name).read_bytes(),
       "numpy": lambda name: np.fromfile(name, np.uint8)}[sys.argv[1]]

class Files(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        read = HOW(f"data/{index % 4}.bin")
        sum(range(20_000))
        return index + len(read)

for _ in DataLoader(Files(), batch_size=4, num_workers=int(sys.argv[2])):
    pass
"""


@pytest.mark.parametrize(("how", "workers"), [("open", "0"), ("open", "2"), ("path", "0"), ("numpy", "2")])
def test_a_sample_is_known_by_the_file_it_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, workers: str
) -> None:
    monkeypatch.setenv("LOADERPROF_DEPTH_PERIOD_NS", "0")
    (tmp_path / "data").mkdir()
    for number in range(4):
        (tmp_path / f"data/{number}.bin").write_bytes(bytes(8))
    (tmp_path / "read.py").write_text(SCRIPT)
    done = loaderprof("run", "-o", "seen", "read.py", how, workers, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seen = package.read(tmp_path / "seen")
    rows = seen.tables["sample"]
    assert len(rows) > 20
    files = {int(row["index"]): seen.texts[row["file"]] for row in rows if row["file"] >= 0}
    assert files == {int(index): f"data/{index % 4}.bin" for index in rows["index"]}
    page = (tmp_path / "seen/report.html").read_text()
    # Whichever were the slowest.
    assert re.search(r"data/\d\.bin</bdi>", page)

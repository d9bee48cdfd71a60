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

READ = {"open": lambda name: open(name, "rb").read(), "path": lambda name: pathlib.Path(name).read_bytes(),
        "numpy": lambda name: np.fromfile(name, np.uint8)}

class Files(Dataset):
    def __init__(self, how):
        self.read = READ[how]

    def __getitem__(self, index):
        read = self.read(f"data/{index // 64}-{index % 4}.bin")
        sum(range(20_000))
        return index + len(read)

for number, typed in enumerate(sys.argv[1:]):
    how, workers = typed.split("-")
    order = range(64 * number, 64 * number + 64)
    for _ in DataLoader(Files(how), batch_size=4, sampler=order, num_workers=int(workers)):
        pass
"""
LOADERS = ("open-0", "open-2", "path-0", "numpy-2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all of the loaders, each with files and samples of its own."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "data").mkdir()
    for loader in range(len(LOADERS)):
        for number in range(4):
            (folder / f"data/{loader}-{number}.bin").write_bytes(bytes(8))
    (folder / "read.py").write_text(SCRIPT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOADERPROF_DEPTH_PERIOD_NS", "0")
        done = loaderprof("run", "-o", "seen", "read.py", *LOADERS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "seen"


@pytest.mark.parametrize("loader", LOADERS)
def test_a_sample_is_known_by_the_file_it_opened(folder: Path, loader: str) -> None:
    seen, number = package.read(folder), LOADERS.index(loader)
    rows = seen.tables["sample"]
    rows = rows[rows["index"] // 64 == number]
    assert len(rows) > 20
    files = {int(row["index"]): seen.texts[row["file"]] for row in rows if row["file"] >= 0}
    assert files == {int(index): f"data/{number}-{index % 4}.bin" for index in rows["index"]}


def test_the_page_names_the_files_of_the_slowest_samples(folder: Path) -> None:
    # Whichever these were.
    assert re.search(r"data/\d-\d\.bin</bdi>", (folder / "report.html").read_text())

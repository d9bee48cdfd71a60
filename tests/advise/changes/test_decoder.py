"""The advice on decoders: tried on the job's own files where these are there still, and an assumption that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_sentences import Check
from made import Fetch, Plan, one_loop
from PIL import Image
from real import loaderprof
from truths import LOAD, RESIZE

from loaderprof import cli
from loaderprof.capture import decoders
from loaderprof.conclude import findings_of
from loaderprof.findings import Advice
from loaderprof.recording.meta import updated

SCRIPT = """
import pathlib
import numpy as np, torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

class Pictures(Dataset):
    paths = sorted(pathlib.Path("pictures").glob("*"))

    def __len__(self):
        return 200

    def __getitem__(self, index):
        image = Image.open(self.paths[index % len(self.paths)]).convert("RGB")
        return torch.from_numpy(np.array(image.crop((0, 0, 32, 32))))

for _ in DataLoader(Pictures(), batch_size=4):
    pass
"""


def decoder_advice(folder: Path, tried: Any) -> Advice | None:
    fetch = Fetch(cpu=0.08, operators=[(LOAD, 0.06, 0.06), (RESIZE, 0.02, 0.02)])
    made = one_loop(folder / "r", Plan(workers=2, wait=0.035, step=0.005, step_cpu=0.0, fetch=fetch), 2)
    made.meta = updated(made.meta, decoders=tried)
    return next((each for each in findings_of(made).advice if each.id == "faster-decoder"), None)


def tried(**cpu_s: float) -> dict[str, Any]:
    return {"files": 12, "pixels": 1e9, "format": "JPEG", "cpu_s": cpu_s}


def test_a_decoder_gains_what_it_took_less_on_the_jobs_files(tmp_path: Path, said: Check) -> None:
    advice = decoder_advice(tmp_path, tried(PIL=0.012, opencv=0.004))
    assert advice is not None
    assert advice.change["to"] == "opencv"
    said("faster-decoder", f"{advice.action}\n{advice.why}")
    # 60 of 80 ms three times as fast, in two workers, beside no step to speak of.
    assert advice.expected.speedup == pytest.approx(80 / 40, rel=0.05)
    assert (advice.expected.low or 0.0) < 80 / 40 < (advice.expected.high or 0.0)


def test_no_decoder_is_advised_where_none_is_faster(tmp_path: Path) -> None:
    assert decoder_advice(tmp_path, tried(PIL=0.012, opencv=0.0115)) is None


def test_half_size_is_advised_only_where_enough_pixels_stay(tmp_path: Path) -> None:
    advice = decoder_advice(tmp_path, {**tried(PIL=0.012, draft=0.004, opencv=0.008), "pixels": 16.0})
    assert advice is not None
    assert advice.change["to"] == "opencv"


@pytest.mark.parametrize(
    "nonsense",
    [None, 3, {}, {"cpu_s": {"PIL": "x"}}, tried(opencv=0.1), {**tried(PIL=0.1), "files": "many"}, tried(PIL=-1.0)],
)
def test_what_was_not_tried_is_an_assumption(tmp_path: Path, said: Check, nonsense: Any) -> None:
    advice = decoder_advice(tmp_path, nonsense)
    assert advice is not None
    said("faster-decoder that was not tried", advice.why)
    assert "to" not in advice.change


def pictures(folder: Path, kind: str) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = []
    for number in range(4):
        image = Image.fromarray(rng.integers(0, 255, (480, 640, 3), np.uint8))
        files.append(folder / f"{number}.{kind}")
        image.save(files[-1])
    return files


def test_every_decoder_decodes_the_same_images(tmp_path: Path) -> None:
    files = pictures(tmp_path / "pictures", "jpg")
    (tmp_path / "notes.txt").write_text("no image")
    found = decoders.measure([*files, tmp_path / "notes.txt", tmp_path / "gone.jpg"])
    assert found is not None
    assert (found["files"], found["pixels"], found["format"]) == (4, 640 * 480, "JPEG")
    assert {"PIL", "draft"} <= found["cpu_s"].keys()
    assert 0 < found["cpu_s"]["draft"] < found["cpu_s"]["PIL"] < 1


def test_half_size_is_for_jpeg_alone(tmp_path: Path) -> None:
    found = decoders.measure(pictures(tmp_path / "pictures", "png"))
    assert found is not None
    assert "draft" not in found["cpu_s"]
    assert decoders.measure([tmp_path / "gone.png"]) is None


@pytest.mark.slow
def test_a_run_tries_decoders_on_its_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOADERPROF_DEPTH_PERIOD_NS", "0")
    pictures(tmp_path / "pictures", "jpg")
    (tmp_path / "train.py").write_text(SCRIPT)
    done = loaderprof("run", "--no-html", "-o", "seen", "train.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "seen/findings.json").read_text())
    assert found["verdict"]["bottleneck"] == "decode"
    (advice,) = (each for each in found["advice"] if each["id"] == "faster-decoder")
    assert advice["why"].startswith("On 4 of this job's files it took ")
    assert cli.main(["report", "--json", str(tmp_path / "seen")]) == 0
    assert json.loads(capsys.readouterr().out)["advice"] == found["advice"]

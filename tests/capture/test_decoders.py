"""Decoders over real files, in the process of their own that measures them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from loaderprof.capture import decoders


def test_files_that_are_no_images_are_not_measured(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    assert decoders.measure([text, tmp_path / "nowhere.jpg"]) is None
    assert decoders.measure([]) is None


def test_every_decoder_gets_the_images_of_the_most_frequent_format(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (64, 32), (number, 0, 0)).save(tmp_path / f"{number}.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    found = decoders.measure(sorted(tmp_path.iterdir()))
    assert found is not None
    assert (found["files"], found["pixels"], found["format"]) == (3, 64 * 32, "JPEG")
    assert {"PIL", "draft"} <= set(found["cpu_s"])
    assert all(seconds > 0 for seconds in found["cpu_s"].values())

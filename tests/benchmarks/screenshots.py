"""Photograph the reports of the sample runs, for docs/: light, dark, and as narrow as a telephone.

python tests/benchmarks/screenshots.py                  writes docs/screenshots/*.png
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
SAMPLES, TARGET = ROOT / "sample_runs", ROOT / "docs" / "screenshots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LIMIT_BYTES = 1_500_000

# Sample, colours, width and height; 0: the whole page.
PICTURES: tuple[tuple[str, Literal["light", "dark"], int, int], ...] = (
    ("decode_bound", "light", 1120, 0),
    ("decode_bound", "dark", 1120, 900),
    ("decode_bound", "light", 390, 844),
    ("io_bound", "light", 1120, 900),
    ("transform_bound", "dark", 1120, 900),
    ("compute_bound", "light", 1120, 900),
    ("healthy", "light", 1120, 900),
)


def name(sample: str, scheme: str, width: int, height: int) -> str:
    """Return a picture's file name: decode_bound-light.png, decode_bound-light-390.png, decode_bound-light-whole.png."""
    more = "-whole" if height == 0 else f"-{width}" if width < 1000 else ""
    return f"{sample}-{scheme}{more}.png"


def page(sample: str, folder: Path) -> Path:
    """Render the kept recording of a sample as it is rendered now."""
    target = folder / f"{sample}.html"
    if not target.exists():
        recording = SAMPLES / sample / "recording"
        command = [
            sys.executable,
            "-m",
            "loaderprof",
            "report",
            str(recording.relative_to(ROOT)),
            "--html",
            str(target),
        ]
        subprocess.run(command, cwd=ROOT, check=True)
    return target


def photograph(browser: Any, file: Path, scheme: str, width: int, height: int) -> bytes:
    """Return a PNG of few colours, which is a third of what the browser makes."""
    context = browser.new_context(viewport={"width": width, "height": height or 900}, color_scheme=scheme)
    opened = context.new_page()
    opened.goto(file.as_uri())
    opened.locator("h1").wait_for()
    raw = opened.screenshot(full_page=height == 0, animations="disabled")
    context.close()
    image, small = Image.open(io.BytesIO(raw)).convert("RGB"), io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def main() -> int:
    """Write all pictures; 1 if they are larger than a repository should carry."""
    if CHROMIUM is None:
        print("no chromium on this machine: apt install chromium", file=sys.stderr)
        return 2
    TARGET.mkdir(exist_ok=True)
    total = 0
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for picture in PICTURES:
            sample, *how = picture
            png = photograph(browser, page(sample, Path(folder)), *how)
            (TARGET / name(*picture)).write_bytes(png)
            total += len(png)
            print(f"{name(*picture):36} {len(png) / 1000:.0f} kB")
        browser.close()
    print(f"{total / 1000:.0f} kB in all")
    return 0 if total <= LIMIT_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())

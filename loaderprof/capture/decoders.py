"""How fast the decoders that are installed here decode the job's own images: after the job, in a process of its own.

A decoder may crash on a damaged file, and importing one takes memory that the supervisor need not keep.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

MAX_FILES, MAX_BYTES = 16, 32 << 20
# Seconds of decoding, and how long the process may take with its imports.
BUDGET_S, PATIENCE_S = 1.5, 30.0

Decode = Callable[[bytes], object]


def measure(paths: Sequence[Path]) -> dict[str, Any] | None:
    """Return what decoding images takes with each decoder; None where none of the files is an image, or it failed.

    Args:
        paths: files that the job opened; those that are no images are left out.

    Returns:
        `files`: how many were decoded; `pixels`: their mean size; `format`: of most of them; `cpu_s`: by decoder (`PIL`,
        `draft`, `opencv`, `simplejpeg`, `torchvision`), seconds of CPU an image. Each decoded the same files.
    """
    known = [str(path) for path in paths if path.is_file() and path.stat().st_size < MAX_BYTES]
    spread = known[:: max(1, len(known) // MAX_FILES)][:MAX_FILES]
    if not spread:
        return None
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps(spread),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _main() -> None:
    images = list(_images(json.load(sys.stdin)))
    kinds = [kind for _, kind, _ in images]
    if not images:
        json.dump(None, sys.stdout)
        return
    kind = max(set(kinds), key=kinds.count)
    raws = [raw for raw, mine, _ in images if mine == kind]
    sizes = [pixels for _, mine, pixels in images if mine == kind]
    spent = _timed(raws, dict(_decoders(kind, raws)))
    json.dump({"files": len(raws), "pixels": sum(sizes) / len(sizes), "format": kind, "cpu_s": spent}, sys.stdout)


def _images(paths: Sequence[str]) -> Iterator[tuple[bytes, str, int]]:
    """Yield the content, format and pixels of each file that is an image."""
    for path in paths:
        image = _image(Path(path))
        if image is not None:
            yield image


def _image(path: Path) -> tuple[bytes, str, int] | None:
    from PIL import Image

    try:
        raw = path.read_bytes()
        with Image.open(io.BytesIO(raw)) as image:
            return raw, str(image.format), image.width * image.height
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # it is none, or a damaged one


def _decoders(kind: str, raws: Sequence[bytes]) -> Iterator[tuple[str, Decode]]:
    """Yield the decoders that are installed and decode all of the images."""
    beside_pil = False
    for name, module, make in _KNOWN:
        # Importing torch takes longer than all of the decoding: only where there is nothing else to compare PIL with.
        wanted = (kind == "JPEG" or name in _ANY_FORMAT) and not (name == "torchvision" and beside_pil)
        decode = _working(make, raws) if wanted and importlib.util.find_spec(module) is not None else None
        if decode is not None:
            beside_pil = beside_pil or module != "PIL"
            yield name, decode


def _working(make: Callable[[], Decode], raws: Sequence[bytes]) -> Decode | None:
    try:
        decode = make()
        for raw in raws:
            decode(raw)
    except (ImportError, AttributeError, OSError, RuntimeError, TypeError, ValueError):
        return None  # it does not load here, or does not know these files
    return decode


def _timed(raws: Sequence[bytes], decoders: dict[str, Decode]) -> dict[str, float]:
    """Return seconds of CPU an image by decoder: in turns over all images, until the budget is spent."""
    spent = dict.fromkeys(decoders, 0.0)
    rounds, begun = 0, time.perf_counter()
    while not rounds or time.perf_counter() - begun < BUDGET_S:
        for name, decode in decoders.items():
            cpu = time.process_time()
            for raw in raws:
                decode(raw)
            spent[name] += time.process_time() - cpu
        rounds += 1
    return {name: seconds / rounds / len(raws) for name, seconds in spent.items()}


def _pil() -> Decode:
    from PIL import Image

    return lambda raw: Image.open(io.BytesIO(raw)).convert("RGB")


def _draft() -> Decode:
    from PIL import Image

    def decode(raw: bytes) -> object:
        image = Image.open(io.BytesIO(raw))
        image.draft("RGB", (image.width // 2, image.height // 2))
        return image.convert("RGB")

    return decode


def _opencv() -> Decode:
    import numpy as np

    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)

    def decode(raw: bytes) -> object:
        pixels = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR)
        if pixels is None:
            raise ValueError("no image to OpenCV")
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)

    return decode


def _simplejpeg() -> Decode:
    simplejpeg = importlib.import_module("simplejpeg")
    return lambda raw: simplejpeg.decode_jpeg(raw, "RGB")


def _torchvision() -> Decode:
    import torch

    images = importlib.import_module("torchvision.io")
    torch.set_num_threads(1)
    return lambda raw: images.decode_image(
        torch.frombuffer(bytearray(raw), dtype=torch.uint8), images.ImageReadMode.RGB
    )


# Name, the module that it needs, what makes it.
_KNOWN: tuple[tuple[str, str, Callable[[], Decode]], ...] = (
    ("PIL", "PIL", _pil),
    ("draft", "PIL", _draft),
    ("opencv", "cv2", _opencv),
    ("simplejpeg", "simplejpeg", _simplejpeg),
    ("torchvision", "torchvision", _torchvision),
)
_ANY_FORMAT = ("PIL", "opencv", "torchvision")

if __name__ == "__main__":
    _main()

"""A faster image decoder: what those installed here take on the job's own files, or an assumption that says so. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from loaderprof.advise.change import Change, Decoders, RunFacts
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Costs
from loaderprof.recording.meta import Meta
from loaderprof.replay.edits import faster
from loaderprof.replay.model import LoopModel

# Where the job's files could not be tried. On 720p pictures: a turbo decoder 1.3 to 1.5 times as fast, draft mode 2 times.
DECODER_RATIOS = (1.3, 1.5, 2.0)
# What a decoder gains alone, on cores of its own, holds this well within a run.
DOUBT = 1.15
# A decoder that is not faster by this is no change.
MIN_RATIO = 1.1
_DRAFT = 'image = Image.open(path)\nimage.draft("RGB", (image.width // 2, image.height // 2))  # JPEG only'
_CODE = {
    "draft": _DRAFT,
    "opencv": "image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)  # an array, no PIL image",
    "simplejpeg": "image = simplejpeg.decode_jpeg(open(path, 'rb').read(), 'RGB')  # an array, no PIL image",
    "torchvision": "image = torchvision.io.decode_image(path, 'RGB')  # a tensor, no PIL image",
}
_NAMES = {"draft": "at half size (PIL draft mode)", "opencv": "with OpenCV"}


def decoders_of(meta: Meta) -> Decoders | None:
    """Return what trying decoders found, from a recording's facts; None where they were not tried."""
    found = meta.decoders
    cpu_s = {
        name: float(seconds)
        for name, seconds in found.cpu_s.items()
        if isinstance(seconds, int | float) and 0 < seconds < 1e4
    }
    if found.files is None or found.pixels is None or "PIL" not in cpu_s:
        return None
    return Decoders(found.files, float(found.pixels), cpu_s)


def faster_decoder(context: LoopContext, base: LoopModel, facts: RunFacts) -> Iterator[Change]:
    """Offer the decoder that took least on the job's own files; an assumed one where they could not be tried."""
    pieces = [piece for piece in context.parts.pieces if piece.stage == "decode" and "PIL" in piece.name]
    if not pieces:
        return
    tried = facts.decoders
    if tried is None:
        action, name, ratios = (
            "Decode images at reduced size (PIL draft mode) or with a faster decoder",
            None,
            DECODER_RATIOS,
        )
        why = f"{context.named('decode')} decodes full images; a decoder 1.3 to 2 times as fast is assumed, not measured here."
    else:
        name, ratio = _best(tried, facts.bytes_per_sample)
        if ratio < MIN_RATIO:
            return
        action, ratios = f"Decode {_NAMES.get(name, f'with {name}')}", (max(1.0, ratio / DOUBT), ratio, ratio * DOUBT)
        why = f"On {tried.files} of this job's files it took {tried.cpu_s[name] * 1e3:.3g} ms an image, PIL {tried.cpu_s['PIL'] * 1e3:.3g} ms."
    slow, middle, fast = (faster(base, context.parts, "decode", ratio) for ratio in ratios)
    before = base.pace_s()
    yield Change(
        "faster-decoder",
        action,
        why,
        pieces[0].where,
        {"kind": "decoder", "from": "PIL", **({"to": name} if name else {})},
        {"decoder": "PIL"},
        middle,
        Costs(0.0, 0, "a few lines"),
        _CODE.get(name or "draft", ""),
        before / slow.pace_s(),
        before / fast.pace_s(),
        cheaper=frozenset({"decode"}),
    )


def _best(tried: Decoders, bytes_per_sample: float | None) -> tuple[str, float]:
    """Return the decoder that took least, and how many times PIL took it; half size only where enough pixels stay."""
    pil = tried.cpu_s["PIL"]
    # Three bytes a pixel: samples of a larger type hold fewer.
    enough = bytes_per_sample is not None and tried.pixels / 4 >= bytes_per_sample / 3
    fit = {
        name: pil / seconds for name, seconds in tried.cpu_s.items() if name in _CODE and (name != "draft" or enough)
    }
    name = max(fit, key=lambda each: fit[each], default="draft")
    return name, fit.get(name, 1.0)

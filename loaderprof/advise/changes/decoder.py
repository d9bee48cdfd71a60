"""A faster image decoder: what those installed here take on the job's own files, or an assumption that says so. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from loaderprof import formatting
from loaderprof.advise.change import Change, ChangeGuide, Decoders, RunFacts, rule
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Costs
from loaderprof.recording.meta import Meta
from loaderprof.replay.edits import faster
from loaderprof.replay.model import LoopModel

# Where the job's files could not be tried. On 720p pictures: a turbo decoder 1.3 to 1.5 times as fast, draft mode 2 times.
DECODER_RATIOS = (1.3, 1.5, 2.0)
# A decoder's speedup was measured alone, on idle cores: within a run it is this factor lower or higher.
DOUBT = 1.15
# A decoder that is not faster by this is no change.
MIN_RATIO = 1.1

FASTER_DECODER = ChangeGuide(
    "faster-decoder",
    f"Decode at reduced size or with a faster decoder (tried on the job's own files; "
    f"{DECODER_RATIOS[0]:g} to {DECODER_RATIOS[-1]:g} times as fast is assumed where they have gone)",
    code='image = Image.open(path)\nimage.draft("RGB", (2 * size, 2 * size))  # JPEG only: decodes at 1/2, 1/4 or 1/8',
)
_CODE = {
    "draft": 'image = Image.open(path)\nimage.draft("RGB", (image.width // 2, image.height // 2))  # JPEG only',
    "opencv": "image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)  # an array, no PIL image",
    "simplejpeg": "image = simplejpeg.decode_jpeg(open(path, 'rb').read(), 'RGB')  # an array, no PIL image",
    "torchvision": "image = torchvision.io.decode_image(path, 'RGB')  # a tensor, no PIL image",
}
_NAMES = {"draft": "at half size (PIL draft mode)", "opencv": "with OpenCV"}


@rule(FASTER_DECODER)
def faster_decoder(context: LoopContext, base: LoopModel, facts: RunFacts) -> Iterator[Change]:
    """Use the decoder that took least on the job's own files; an assumed one where they could not be tried."""
    pieces = [piece for piece in context.parts.pieces if piece.stage == "decode" and "PIL" in piece.name]
    if not pieces:
        return
    tried, ratios = facts.decoders, DECODER_RATIOS
    name: str | None = None
    action = "Decode images at reduced size (PIL draft mode) or with a faster decoder"
    why = f"{context.named('decode')} decodes full images; a decoder 1.3 to 2 times as fast is assumed, not measured here."
    if tried is not None:
        name, ratio = _best(tried, facts.bytes_per_sample)
        if ratio < MIN_RATIO:
            return
        ratios = (max(1.0, ratio / DOUBT), ratio, ratio * DOUBT)
        action = f"Decode {_NAMES.get(name, f'with {name}')}"
        why = (
            f"On {tried.files} of this job's files it took {formatting.duration(tried.cpu_s[name])} an image, "
            f"PIL {formatting.duration(tried.cpu_s['PIL'])}."
        )
    worst, likely, best = (faster(base, context.parts, "decode", ratio) for ratio in ratios)
    yield Change(
        id=FASTER_DECODER.id,
        action=action,
        why=why,
        where=pieces[0].where,
        change={"kind": "decoder", "from": "PIL", **({"to": name} if name else {})},
        current={"decoder": "PIL"},
        model=likely,
        costs=Costs(0.0, 0, "a few lines"),
        code=_CODE.get(name or "draft", ""),
        cheaper=frozenset({"decode"}),
    ).between(base, worst, best)


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

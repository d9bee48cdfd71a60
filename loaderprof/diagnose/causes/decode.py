"""Causes in decoding: named by what is decoded, which the most expensive operators say."""

from __future__ import annotations

import re

from loaderprof.diagnose.causes.cause import CauseRule, Guide, always, uses
from loaderprof.diagnose.causes.making import in_producers, producing
from loaderprof.diagnose.loop_context import LoopContext

DECODING = producing("decode")
_DECODE = ("num-workers", "cache-in-memory", "cache-on-disk")
_STORE = "Store the decoded, or partly decoded, form once (arrays of uint8, tokens, columns) and read that instead."
_by_pil = uses(r"PIL\.", "decode")


def _decodes(context: LoopContext, format_: str) -> bool:
    """Return whether images of this format alone are decoded: PIL decodes lazily, but the format's plugin opened the file."""
    opened = [each for each in context.operators if re.search(r"^PIL\.\w+ImagePlugin", each)]
    if opened and _by_pil(context):
        return all(re.search(format_, each, re.IGNORECASE) for each in opened)
    return uses(format_, "decode")(context)


CAUSES: tuple[CauseRule, ...] = (
    CauseRule(
        id="jpeg-decode",
        stage="decode",
        title="JPEG decode",
        test=lambda context: _decodes(context, r"jpe?g"),
        evidence=DECODING,
        headline=in_producers,
        tf_calls=r"jpe?g",
        guide=Guide(
            means="Workers turn JPEG bytes into pixels, usually many more pixels than the model gets.",
            identified_by="the dearest decode is JPEG's: by its name, or because only JPEG files were opened",
            changes=(*_DECODE, "faster-decoder"),
            do=("Store the pictures at the size that training uses.",),
        ),
    ),
    CauseRule(
        id="png-decode",
        stage="decode",
        title="PNG decode",
        test=lambda context: _decodes(context, r"png"),
        evidence=DECODING,
        headline=in_producers,
        tf_calls=r"png",
        guide=Guide(
            means="Workers inflate PNG pictures; that is several times dearer than a JPEG of the same size.",
            identified_by="the dearest decode is PNG's",
            changes=(*_DECODE, "faster-decoder"),
            do=("Store the pictures as JPEG or WebP of high quality, or raw, where that is exact enough.",),
        ),
    ),
    CauseRule(
        id="image-decode",
        stage="decode",
        title="Image decode",
        test=uses(r"PIL|cv2\.im|imageio|read_image|png|webp|tiff|imdecode", "decode"),
        evidence=DECODING,
        headline=in_producers,
        tf_calls=r"DecodeImage|bmp|gif|webp|imread|imdecode",
        guide=Guide(
            means="Workers turn encoded pictures of several or other formats into pixels.",
            identified_by="a picture library among the dearest decodes",
            changes=(*_DECODE, "faster-decoder"),
            do=("Store the pictures at the size that training uses.",),
        ),
    ),
    CauseRule(
        id="audio-decode",
        stage="decode",
        title="Audio decode",
        test=uses(r"soundfile|wave\b|audio|librosa|flac|mp3|\bsf\.", "decode"),
        evidence=DECODING,
        headline=in_producers,
        tf_calls=r"wav|audio",
        guide=Guide(
            means="Workers turn encoded sound into samples.",
            identified_by="a sound library among the dearest decodes",
            changes=_DECODE,
            do=("Cut and resample the recordings once, and store the pieces that training uses.",),
        ),
    ),
    CauseRule(
        id="video-decode",
        stage="decode",
        title="Video decode",
        test=uses(r"\bav\b|decord|torchcodec|video", "decode"),
        evidence=DECODING,
        headline=in_producers,
        guide=Guide(
            means="Workers turn encoded video into frames; a clip from the middle makes the decoder work from the last key frame on.",
            identified_by="a video library among the dearest decodes",
            changes=_DECODE,
            do=(
                "Keep the decoder open, ask for frames in ascending order, encode with more key frames, or store frames.",
            ),
        ),
    ),
    CauseRule(
        id="tokenising",
        stage="decode",
        title="Tokenising",
        test=uses(r"token|transformers|sentencepiece|tiktoken", "decode"),
        evidence=DECODING,
        headline=in_producers,
        guide=Guide(
            means="Text becomes tokens while training runs, again in each epoch.",
            identified_by="a tokeniser among the dearest decodes",
            changes=_DECODE,
            do=("Tokenise once, in batches, and train on stored tokens.", "Use the library's fast tokeniser."),
        ),
    ),
    CauseRule(
        id="decompression",
        stage="decode",
        title="Decompression",
        test=uses(r"zlib|gzip|bz2|lzma|npz|compress|inflate", "decode"),
        evidence=DECODING,
        headline=in_producers,
        guide=Guide(
            means="Workers inflate compressed arrays or files (gzip, npz, bz2, lzma).",
            identified_by="a compression library among the dearest decodes",
            changes=_DECODE,
            do=(_STORE,),
        ),
    ),
    CauseRule(
        id="record-parsing",
        stage="decode",
        title="Parsing of records",
        test=uses(r"json|csv|pickle|parse|xml|yaml|html|\bre\.|torch\.load|loads", "decode"),
        evidence=DECODING,
        headline=in_producers,
        tf_calls=r"parse|csv|json|proto|loads",
        guide=Guide(
            means="Workers parse records: JSON, CSV, XML, pickle, `torch.load`.",
            identified_by="a parser among the dearest decodes",
            changes=_DECODE,
            do=(_STORE,),
        ),
    ),
    CauseRule(
        id="decode",
        stage="decode",
        title="Decoding",
        test=always,
        evidence=DECODING,
        headline=in_producers,
        guide=Guide(
            means="Bytes become values in a way that none of the kinds above names.",
            identified_by="decodes that no kind above matches",
            changes=_DECODE,
            do=(_STORE,),
        ),
    ),
)

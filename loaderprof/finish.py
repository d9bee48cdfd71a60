"""A recording that was just made: complete it from this machine, conclude, and write findings, page and screen."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from loaderprof.analyze import many_ranks
from loaderprof.analyze.loop_side import TRAINING
from loaderprof.analyze.operators import names_made, users_files
from loaderprof.analyze.reads import paths_named
from loaderprof.capture import decoders, mounts
from loaderprof.capture.sources import lines_of, lines_that_make, lines_with
from loaderprof.conclude import conclude, readvised
from loaderprof.findings import Findings
from loaderprof.recording import files
from loaderprof.recording.meta import updated
from loaderprof.recording.reader import Recording
from loaderprof.report.spinner import sign
from loaderprof.report.terminal import screen


def finish(folder: Path, *, html: bool, shown: str | None = None, whole: bool = True) -> Findings:
    """Conclude from a recording that was just made, write findings and page, and print the report on stderr.

    Args:
        folder: the recording.
        html: write report.html too.
        shown: where the report says that the recording is; None: in its folder.
        whole: False where the user knows already that there was no room for all of it.
    """

    shown, failure = shown or files.as_typed(folder), None
    with sign("loaderprof: making the report"):
        seen = many_ranks.read(folder)
        _keep_sources(seen)
        conclusion = conclude(seen)
        found = conclusion.findings
        if any(each.id == "faster-decoder" for each in found.advice) and _try_decoders(seen):
            found = readvised(seen, conclusion)
        try:
            files.write_whole(folder / files.FINDINGS, found.to_json())
            if html:
                from loaderprof.report.html import page  # imports matplotlib, half a second

                files.write_whole(folder / files.PAGE, page(seen, found, shown))
        except OSError as error:
            failure = error.strerror
    if failure is not None and whole:
        sys.stderr.write(f"loaderprof: {shown}: {failure}; not all of the report could be written\n")
    with suppress(OSError):
        sys.stderr.write("\n" + screen(found, shown, sys.stderr.isatty()))
    return found


def _keep_sources(seen: Recording) -> None:
    """Keep the user's lines that stacks passed through, make operators or train, so that no sources are needed later."""

    frames = {frame for sample in seen.stacks for frame in sample.frames}
    seen.meta = updated(seen.meta, sources=lines_of(frames))
    own = users_files(seen)
    seen.meta = updated(
        seen.meta,
        sources={**seen.meta.sources, **lines_with(TRAINING, own)},
        file_systems=_file_systems(seen),
        made_at=lines_that_make(names_made(seen), own),
    )
    _write(seen)


def _try_decoders(seen: Recording) -> bool:
    """Try the image decoders that are installed here on the job's own files; return whether they could be tried."""
    cwd = Path(seen.meta.cwd or "/")
    numbers = set(seen.tables["sample"]["file"].tolist())
    tried = decoders.measure([cwd / seen.texts[number] for number in sorted(numbers) if number >= 0])
    if tried is None:
        return False
    seen.meta = updated(seen.meta, decoders=tried)
    _write(seen)
    return True


def _write(seen: Recording) -> None:
    with suppress(OSError):
        files.write_meta(seen.folder, seen.meta.written)


def _file_systems(seen: Recording) -> dict[str, str]:
    """Return the type of the file system of each path that the loaders name or their producers held open."""

    table, cwd = mounts.table(), Path(seen.meta.cwd or "/")
    return {path: found for path in paths_named(seen) if (found := mounts.kind(str(cwd / path), table))}

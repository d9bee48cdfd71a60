"""A sign of life while a large recording is read and concluded from."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

# Work that is done within this time shows no message.
AFTER_S = 0.7


@contextlib.contextmanager
def sign(message: str) -> Iterator[None]:
    """Show a message on the terminal until the block ends, once it has lasted a while; nothing where stderr is none."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    from loaderprof import formatting

    status = Console(stderr=True).status(Text(formatting.clean(message)))
    timer = threading.Timer(AFTER_S, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()

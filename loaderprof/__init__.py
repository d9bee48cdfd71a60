"""loaderprof: why PyTorch training waits for data, what it costs, which change to make and what it will gain.

Everything here is imported on first use: DataLoader workers import this package too, and must stay light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loaderprof._version import __version__

__all__ = ["__version__", "profile", "read", "stage", "watch"]

if TYPE_CHECKING:
    from loaderprof.api import profile, read
    from loaderprof.capture.hooks.by_hand import stage, watch


# What runs inside the job is light, and its own module.
_HOMES = {
    "profile": "loaderprof.api",
    "read": "loaderprof.api",
    "stage": "loaderprof.capture.hooks.by_hand",
    "watch": "loaderprof.capture.hooks.by_hand",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'loaderprof' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

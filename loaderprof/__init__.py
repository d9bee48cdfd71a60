"""loaderprof: why PyTorch training waits for data, what it costs, which change to make and what it will gain.

Everything here is imported on first use: DataLoader workers import this package too, and must stay light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "profile", "read", "stage", "watch"]

if TYPE_CHECKING:
    from loaderprof.capture.context import profile, stage, watch
    from loaderprof.recording import read

_HOMES = {
    "profile": "loaderprof.capture.context",
    "stage": "loaderprof.capture.context",
    "watch": "loaderprof.capture.context",
    "read": "loaderprof.recording",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'loaderprof' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

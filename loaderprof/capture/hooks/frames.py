"""Hides the frames of our hooks from `warnings`, so that a warning names the same line as without us.

`warnings.warn(..., stacklevel=2)` names the caller of the caller, and decides by that place whether it was shown before.
It counts past the frames of Python's own import machinery, which it knows by words in their file name; ours carry them.

Standard library only, Python >= 3.8: every worker imports this.
"""

from __future__ import annotations

import os
import types
from typing import TypeVar

Function = TypeVar("Function")


def unseen(function: Function) -> Function:
    """Return a hook whose frames, and those of the functions it makes, `warnings` does not count."""
    function.__code__ = _renamed(function.__code__)  # type: ignore[attr-defined]
    return function


def _renamed(code: types.CodeType) -> types.CodeType:
    constants = tuple(_renamed(item) if isinstance(item, types.CodeType) else item for item in code.co_consts)
    # "/loaderprof/capture/" stays in the name: by it the stack sampler leaves our frames out.
    name = f"<frozen importlib_bootstrap/loaderprof/capture/{code.co_filename.rpartition(os.sep)[2]}>"
    return code.replace(co_filename=name, co_consts=constants)

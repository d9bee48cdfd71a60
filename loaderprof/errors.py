"""The mistakes a user can make, each with the sentence that helps; raised anywhere, caught once in `cli.main`.

Imports nothing of loaderprof.
"""

from __future__ import annotations


class LoaderprofError(Exception):
    """One clear sentence for the user, and what to type next.

    Args:
        message: what happened, without a traceback's help.
        hint: what to type or change now; empty where there is nothing to add.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(LoaderprofError):
    """The command line does not say what to do."""


class OutputError(LoaderprofError):
    """The place for the recording or report cannot be written, or holds something already."""


class RecordingError(LoaderprofError):
    """A folder is no recording, is damaged, or comes from a newer loaderprof."""

"""The verbs, splitting off the job's own words, and errors caught once; the verbs themselves are in `commands`."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

from loaderprof._version import __version__
from loaderprof.errors import LoaderprofError, UsageError

DESCRIPTION = "Tells why PyTorch training waits for data, what it costs, which change to make and what it will gain."
EPILOG = "First thing to type:  loaderprof run train.py"


class _Parser(argparse.ArgumentParser):
    """argparse whose mistakes are ours: one sentence, then what to type."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help")


# Each verb is a module of `commands` with `add_arguments(parser)` and `run(options)`, and is imported when it is typed:
# `loaderprof --help` imports none of them.
VERBS = {
    "run": "run a training script and report on its data loading",
    "report": "render a recording again, without a new run",
    "verify": "run the job without and with a change, and measure what it brings",
    "tune": "find the best loader settings of a job by measuring",
    "compare": "two recordings side by side: settings, speed, stages, verdict",
    "check": "hold a recording against limits, for CI",
    "attach": "watch a job that is already running, and leave it as it was",
    "export": "hand a recording over to Perfetto, speedscope, Prometheus or pandas",
    "env": "what can be measured here: GPU, stacks, CPU budget, limits, versions",
}


def parser(verbs: Collection[str] = tuple(VERBS)) -> argparse.ArgumentParser:
    """Return the parser of all verbs.

    Args:
        verbs: the verbs whose arguments it knows; of the others it knows the names.
    """
    top = _Parser(prog="loaderprof", description=DESCRIPTION, epilog=EPILOG)
    top.add_argument("--version", action="version", version=f"loaderprof {__version__}")
    added = top.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    for name, text in VERBS.items():
        verb = added.add_parser(name, help=text)
        if name in verbs:
            command = importlib.import_module(f"loaderprof.commands.{name}")
            command.add_arguments(verb)
            verb.set_defaults(call=command.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0, 2 for a user's mistake, else the job's own.

    Args:
        arguments: as typed after `loaderprof`; the process's own by default.
    """
    try:
        typed = list(sys.argv[1:] if arguments is None else arguments)
        typed, job, launcher = _split_job(typed)
        top = parser([word for word in typed if word in VERBS][:1])
        options, unknown = top.parse_known_args(typed)
        if unknown:
            raise UsageError(
                f"unrecognized arguments: {' '.join(unknown)}",
                f"loaderprof {options.verb or ''} --help".replace("  ", " "),
            )
        options.job, options.launcher = job, launcher
        if options.verb is None:
            top.print_help()
            return 0
        call: Callable[[argparse.Namespace], int] = options.call
        return call(options)
    except LoaderprofError as error:
        sys.stderr.write(f"loaderprof: {error.message}\n" + (f"  {error.hint}\n" if error.hint else ""))
        return error.exit_code
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            sys.stderr.write(f"loaderprof: the name {error.filename} is too long\n")
            return LoaderprofError.exit_code
        if not isinstance(error, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


# Verbs that are followed by a job, and their options that take the next word with them.
_VALUES = {
    "run": ("-o", "--output", "--set", "--metrics-port", "--max-overhead"),
    "tune": ("-o", "--output", "--loader", "--seconds"),
}


def _split_job(typed: list[str]) -> tuple[list[str], list[str], bool]:
    """Split `run [options] job...`, `tune` alike, by hand: everything from the script on is the job's, dashes included.

    Returns:
        loaderprof's own words, the job's words, and whether `--` stood before them.
    """
    if not typed or typed[0] not in _VALUES:
        return typed, [], False
    at = 1
    while at < len(typed):
        word = typed[at]
        if word == "--":
            return typed[:at], typed[at + 1 :], True
        if word == "-m":
            return typed[: at + 1], typed[at + 1 :], False
        if not word.startswith("-"):
            break
        at += 2 if word in _VALUES[typed[0]] else 1
    return typed[:at], typed[at:], False

"""The verbs and their help; no logic. What a verb needs is imported when the verb is used."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from loaderprof._version import __version__
from loaderprof.errors import LoaderprofError, UsageError

DESCRIPTION = "Tells why PyTorch training waits for data, what it costs, which change to make and what it will gain."
EPILOG = "First thing to type:  loaderprof run train.py"


class _Parser(argparse.ArgumentParser):
    """argparse whose mistakes are ours: one sentence, then what to type."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    top = _Parser(prog="loaderprof", description=DESCRIPTION, epilog=EPILOG)
    top.add_argument("--version", action="version", version=f"loaderprof {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    _add_run(verbs.add_parser("run", help="run a training script and report on its data loading"))
    _add_report(verbs.add_parser("report", help="render a recording again, without a new run"))
    _add_verify(verbs.add_parser("verify", help="run the job without and with a change, and measure what it brings"))
    _add_tune(verbs.add_parser("tune", help="find the best loader settings of a job by measuring"))
    _add_compare(verbs.add_parser("compare", help="two recordings side by side: settings, speed, stages, verdict"))
    _add_check(verbs.add_parser("check", help="hold a recording against limits, for CI"))
    _add_attach(verbs.add_parser("attach", help="watch a job that is already running, and leave it as it was"))
    _add_export(verbs.add_parser("export", help="hand a recording over to Perfetto, speedscope, Prometheus or pandas"))
    env = verbs.add_parser("env", help="what can be measured here: GPU, stacks, CPU budget, limits, versions")
    env.set_defaults(call=_env)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0, 2 for a user's mistake, else the job's own.

    Args:
        arguments: as typed after `loaderprof`; the process's own by default.
    """
    try:
        typed = list(sys.argv[1:] if arguments is None else arguments)
        typed, job, launcher = _split_job(typed)
        options, unknown = parser().parse_known_args(typed)
        if unknown:
            raise UsageError(
                f"unrecognized arguments: {' '.join(unknown)}",
                f"loaderprof {options.verb or ''} --help".replace("  ", " "),
            )
        options.job, options.launcher = job, launcher
        if options.verb is None:
            parser().print_help()
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


def _add_run(verb: argparse.ArgumentParser) -> None:
    verb.usage = (
        "loaderprof run [options] train.py [args]\n"
        "       loaderprof run [options] -m package [args]\n"
        "       loaderprof run [options] -- torchrun --nproc-per-node=2 train.py [args]"
    )
    verb.add_argument(
        "-o", "--output", metavar="DIR", help="folder or URL of the recording (default: named after the script)"
    )
    verb.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="apply a setting: num_workers=4, tf.prefetch=2"
    )
    verb.add_argument("--no-html", action="store_true", help="write no report.html")
    verb.add_argument("--force", action="store_true", help="replace the recording in DIR")
    verb.add_argument("--live", action="store_true", help="watch the run on the whole terminal; q leaves, ? helps")
    verb.add_argument("--no-status", action="store_true", help="no status line on the terminal while the job runs")
    verb.add_argument(
        "--metrics-port",
        metavar="[HOST:]PORT",
        help="while it runs, answer Prometheus on this port of this machine: http://127.0.0.1:PORT/metrics",
    )
    verb.add_argument(
        "--max-overhead",
        metavar="PERCENT",
        help="of the job, what all of capture may cost (default 1%%): less is seen for less",
    )
    verb.add_argument(
        "--keep", action="store_true", help="a record of every batch, whatever it costs and however long it runs"
    )
    verb.add_argument("-m", dest="module", action="store_true", help="run a module, like python -m")
    verb.set_defaults(call=_run)


def _run(options: argparse.Namespace) -> int:
    from loaderprof.commands import run
    from loaderprof.live import endpoint

    return run.run(
        options.job,
        module=options.module,
        launcher=options.launcher,
        output=options.output,
        settings=_settings(options.set),
        html=not options.no_html,
        force=options.force,
        status=not options.no_status,
        live=options.live,
        metrics_at=endpoint.address(options.metrics_port) if options.metrics_port else None,
        max_overhead=_percentage(options.max_overhead) if options.max_overhead else None,
        keep=options.keep,
    )


def _percentage(text: str) -> float:
    """Return the share that `--max-overhead` asked for: `1%`, or 1."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*%?", text.strip())
    share = float(match[1]) / 100 if match else 0.0
    if not 0.0 < share <= 1.0:
        raise UsageError(
            f"--max-overhead is a percentage above 0 and up to 100, not {text!r}",
            "loaderprof run --max-overhead 1% train.py",
        )
    return share


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Return what `--set` asked for, with Python's values: 4, true, spawn."""
    from loaderprof.capture.hooks import settings as loaders
    from loaderprof.capture.hooks import tf_settings

    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        of_tf = key in tf_settings.KEYS
        if not equals or not (of_tf or key.split(".")[-1] in loaders.KEYS):
            known = (*loaders.KEYS, *tf_settings.KEYS)
            raise UsageError(
                f"--set does not know {pair!r}", "--set takes " + ", ".join(f"{name}=..." for name in known)
            )
        if value.lower() in words:
            settings[key] = words[value.lower()]
        elif value.isdecimal():
            settings[key] = int(value)
        else:
            settings[key] = value
        if of_tf and not tf_settings.fits(key, settings[key]):
            raise UsageError(
                f"--set {pair} is nothing that tf.data takes",
                "loaderprof run --set tf.num_parallel_calls=AUTOTUNE train.py",
            )
        if not of_tf and not loaders.fits(key.split(".")[-1], settings[key]):
            raise UsageError(
                f"--set {pair} is nothing that a DataLoader takes", "loaderprof run --set num_workers=4 train.py"
            )
    return settings


def _add_report(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", metavar="DIR", help="a recording: a folder or a URL")
    verb.add_argument("--json", action="store_true", help="print the findings and nothing else")
    verb.add_argument("--html", metavar="FILE", help="write the page to FILE")
    verb.add_argument("--figures", metavar="OUT", help="write the pictures to folder OUT, as SVG, PNG and PDF")
    verb.add_argument("--rank", metavar="R", type=int, help="report on one rank")
    verb.add_argument("--force", action="store_true", help="replace FILE, and pictures in OUT")
    verb.set_defaults(call=_report)


def _report(options: argparse.Namespace) -> int:
    from loaderprof.commands import report
    from loaderprof.recording import remote

    with remote.local(options.folder) as folder:
        return report.report(
            folder,
            as_json=options.json,
            html=options.html,
            figures=options.figures,
            rank=options.rank,
            force=options.force,
            shown=_shown(options.folder),
        )


def _shown(place: str) -> str | None:
    """Return what reports call a recording that lies at a URL; None for a folder."""
    from loaderprof.recording import remote

    return remote.shown(place) if remote.is_url(place) else None


def _add_verify(verb: argparse.ArgumentParser) -> None:
    verb.description = (
        "Runs the recorded job again, alternately as it was and changed. It does what it always does: "
        "checkpoints and logs that it writes, it writes again. Its output goes to DIR/verify.log."
    )
    verb.add_argument("folder", metavar="DIR", help="a recording made by loaderprof run")
    verb.add_argument(
        "--change",
        metavar="ID",
        action="append",
        default=[],
        help="advice to apply, by id or number (default: the best that is a setting); several are applied together",
    )
    verb.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="predict and measure a setting of your own instead: num_workers=4; several are applied together",
    )
    verb.add_argument(
        "--runs",
        metavar="N",
        type=int,
        default=6,
        help="at most so many pairs of runs, without and with the change (6)",
    )
    verb.add_argument(
        "--precision",
        metavar="P",
        type=float,
        default=5.0,
        help="stop as soon as the ratio is known to P %% either way (5); 0: run all pairs",
    )
    verb.add_argument(
        "--seconds", metavar="S", type=float, default=60.0, help="end a run S seconds after its first loader began (60)"
    )
    verb.set_defaults(call=_verify)


def _verify(options: argparse.Namespace) -> int:
    from loaderprof.commands import verify
    from loaderprof.recording import remote

    if remote.is_url(options.folder):
        raise UsageError(
            "verify keeps what it measures beside the recording: it takes a folder, not a URL", "copy it first"
        )
    return verify.verify(
        Path(options.folder),
        options.change,
        settings=_settings(options.set),
        pairs=options.runs,
        limit_s=options.seconds,
        precision=options.precision / 100,
    )


def _add_tune(verb: argparse.ArgumentParser) -> None:
    verb.usage = "loaderprof tune [options] train.py [args]\n       loaderprof tune [options] -m package [args]"
    verb.description = (
        "Runs the job and changes the settings of its training loader between windows of the same stream of batches, "
        "within the CPU budget, memory, /dev/shm and open files. Its output goes to DIR/tune.log; once the settings "
        "are found it is ended. An iterable dataset and jobs of several ranks are run anew for each measurement."
    )
    verb.add_argument("-o", "--output", metavar="DIR", help="folder of the result (default: named after the script)")
    verb.add_argument("--loader", metavar="NAME", help="variable of the loader (default: the first that is trained on)")
    verb.add_argument(
        "--seconds",
        metavar="S",
        type=float,
        help="begin nothing new S seconds after the first measurement (180; 900 across runs)",
    )
    verb.add_argument("--keep-order", action="store_true", help="do not try in_order=False")
    verb.add_argument(
        "--finish", action="store_true", help="let the job go on with the settings found, in order, to its own end"
    )
    verb.add_argument("-m", dest="module", action="store_true", help="run a module, like python -m")
    verb.set_defaults(call=_tune)


def _tune(options: argparse.Namespace) -> int:
    from loaderprof.commands import tune

    return tune.tune(
        options.job,
        module=options.module,
        launcher=options.launcher,
        output=options.output,
        loader=options.loader,
        limit_s=options.seconds,
        keep_order=options.keep_order,
        finish=options.finish,
    )


def _add_compare(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("a", metavar="A", help="a recording: a folder or a URL")
    verb.add_argument("b", metavar="B", help="the recording held against it")
    verb.add_argument("--json", action="store_true", help="print the comparison as JSON and nothing else")
    verb.set_defaults(call=_compare)


def _compare(options: argparse.Namespace) -> int:
    from loaderprof.commands import compare
    from loaderprof.recording import remote

    with remote.local(options.a) as a, remote.local(options.b) as b:
        return compare.run(a, b, as_json=options.json, shown=(_shown(options.a), _shown(options.b)))


def _add_check(verb: argparse.ArgumentParser) -> None:
    verb.description = "Exit code 0: within all limits; 1: a limit is broken; 2: not enough evidence, or wrong use."
    verb.epilog = 'Limits may stand in [tool.loaderprof] of ./pyproject.toml, too:  max-wait = "10%%"'
    verb.add_argument("folder", metavar="DIR", help="a recording: a folder or a URL")
    verb.add_argument("--max-wait", metavar="SHARE", help="of a step, waiting for its batch: 10%%")
    verb.add_argument("--min-samples-per-s", metavar="X", help="of the main loader, all ranks together")
    verb.add_argument("--max-step", metavar="TIME", help="waiting and the loop's own work: 200ms")
    verb.add_argument("--bottleneck-not", metavar="STAGE,...", help="stages that must not be the bottleneck")
    verb.add_argument("--junit", metavar="FILE", help="write the results as JUnit XML, over an older FILE")
    verb.add_argument("--github", action="store_true", help="print annotations for GitHub, too")
    verb.set_defaults(call=_check)


def _check(options: argparse.Namespace) -> int:
    from loaderprof.commands import check
    from loaderprof.recording import remote

    typed = {key: getattr(options, key.replace("-", "_")) for key in check.KEYS}
    with remote.local(options.folder) as folder:
        return check.check(folder, typed, junit=options.junit, github=options.github)


def _add_attach(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("pid", metavar="PID", type=int, help="the training process, or the launcher above it")
    verb.add_argument(
        "--duration", metavar="S", type=float, default=30.0, help="seconds to watch (default 30); Ctrl-C ends it early"
    )
    verb.add_argument("-o", "--output", metavar="DIR", help="folder of the recording (default: named after the script)")
    verb.add_argument("--no-html", action="store_true", help="write no report.html")
    verb.add_argument("--live", action="store_true", help="watch it on the whole terminal; q leaves, ? helps")
    verb.set_defaults(call=_attach)


def _attach(options: argparse.Namespace) -> int:
    from loaderprof.capture import attach
    from loaderprof.commands import run
    from loaderprof.finish import finish
    from loaderprof.recording import remote

    view = run.view_of_stacks() if options.live else None
    url = options.output if remote.is_url(options.output) else None
    if url:
        remote.check(url, force=False)
    output = str(remote.on_its_way(f"attach-{options.pid}")) if url else options.output
    folder = attach.attach(options.pid, duration_s=options.duration, output=output, view=view)
    finish(folder, html=not options.no_html, shown=_shown(url or ""))
    if url:
        remote.hand_over(folder, url)
    return 0


# As `report.export` has them; named here so that --help imports nothing.
FORMATS = ("chrome", "speedscope", "collapsed", "openmetrics", "parquet")


def _add_export(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", metavar="DIR", help="a recording: a folder or a URL")
    verb.add_argument("--format", metavar="FORMAT", required=True, choices=FORMATS, help=", ".join(FORMATS))
    verb.add_argument("-o", "--output", metavar="FILE", help="where to write (default: in DIR; - for standard output)")
    verb.add_argument("--force", action="store_true", help="replace FILE")
    verb.set_defaults(call=_export)


def _export(options: argparse.Namespace) -> int:
    from loaderprof.commands import export
    from loaderprof.recording import files, remote

    # Of a recording that lies elsewhere the file comes into the current folder.
    output = options.output or (files.EXPORTS[options.format] if remote.is_url(options.folder) else None)
    with remote.local(options.folder) as folder:
        return export.export(folder, options.format, output=output, force=options.force)


def _env(options: argparse.Namespace) -> int:  # noqa: ARG001 - every verb is called alike
    from loaderprof.commands import env as environment

    sys.stdout.write(environment.render())
    return 0

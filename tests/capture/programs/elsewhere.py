"""Put first on the path as `sitecustomize`: a system that is not Linux, as far as loaderprof can see.

What is in /proc cannot be opened by loaderprof, modules that Windows lacks cannot be imported by it, and what only Linux
has is not there. Others (psutil, torch) have their own ways on such systems, and keep theirs.
"""

import builtins
import os
import signal
import sys

ABSENT = {"fcntl", "termios", "tty", "pwd", "grp", "resource"}
LINUX = ("sched_getaffinity", "sched_setaffinity", "posix_fallocate", "pidfd_open", "memfd_create", "wait4", "waitid")


def _is_ours(depth):
    """Whether a frame of loaderprof is among the innermost, below the standard library's own."""
    frame = sys._getframe(depth)
    for _ in range(4):
        if frame is None:
            return False
        file = frame.f_code.co_filename
        if "/loaderprof/" in file and "site-packages" not in file.rpartition("/loaderprof/")[2]:
            return True
        if "site-packages" in file:
            return False
        frame = frame.f_back
    return False


def _audit(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith("/proc") and _is_ours(2):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])


_import, _exists = builtins.__import__, os.path.exists


def _import_elsewhere(name, globals=None, locals=None, fromlist=(), level=0):
    if name in ABSENT and str((globals or {}).get("__name__", "")).startswith("loaderprof"):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)
    return _import(name, globals, locals, fromlist, level)


sys.addaudithook(_audit)
builtins.__import__ = _import_elsewhere
os.path.exists = lambda path: not str(path).startswith("/proc") and _exists(path)
for _name in LINUX:
    if hasattr(os, _name):
        delattr(os, _name)
for _name in ("sigwaitinfo", "sigtimedwait", "pthread_sigmask"):
    delattr(signal, _name)

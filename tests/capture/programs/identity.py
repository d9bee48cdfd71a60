"""Print all that a program can see of how it was started, but for the variables that let the hooks in."""

import json
import os
import re
import resource
import signal
import sys
import threading

SIGNALS = ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd")
OURS = ("PYTHONPATH", "LOADERPROF_")

with open("/proc/self/status") as status:
    signals = [line.split() for line in status if line.startswith(SIGNALS)]
seen = {
    "name": __name__,
    "file": __file__,
    "package": __package__,
    "spec": repr(__spec__),
    "main": sys.modules["__main__"].__dict__ is globals(),
    "argv": [sys.argv, sys.orig_argv, sys.executable],
    "path": sys.path,
    "flags": [str(sys.flags), sys.warnoptions, str(sys._xoptions)],
    "caller": repr(sys._getframe().f_back),
    "folder": os.getcwd(),
    "environment": {key: value for key, value in sorted(os.environ.items()) if not key.startswith(OURS)},
    "signals": signals,
    "handlers": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
    "group": [os.getpgrp(), os.getsid(0)],
    "terminals": [os.isatty(fd) for fd in (0, 1, 2)],
    "descriptors": len(os.listdir("/proc/self/fd")),
    "text": [str((f.encoding, f.errors, f.line_buffering)) for f in (sys.stdin, sys.stdout, sys.stderr)],
    "limits": [resource.getrlimit(limit) for limit in range(16)],
    "nice": os.nice(0),
    "threads": threading.active_count(),
    "torch": "torch" in sys.modules,
}
print(re.sub(" at 0x[0-9a-f]+", "", json.dumps(seen, indent=1)))

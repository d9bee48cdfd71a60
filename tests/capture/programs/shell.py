"""A shell with job control for one job: continue it whenever it stops, and tell what happened."""

# ruff: noqa: T201 - what it prints is what the test compares

import os
import signal
import sys

signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # as every shell, to hand over the terminal
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
times = 0
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    os.tcsetpgrp(0, os.getpgrp())
    if not os.WIFSTOPPED(status):
        break
    times += 1
    print(f"stopped {os.WSTOPSIG(status)}, time {times}", flush=True)
    os.tcsetpgrp(0, job)
    os.killpg(job, signal.SIGCONT)
    print(f"continued, time {times}", flush=True)
print("ended", os.waitstatus_to_exitcode(status), flush=True)

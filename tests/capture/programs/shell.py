"""A shell with job control for one job: continue it whenever it stops, and tell what happened."""

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
    os.write(1, b"stopped %d, time %d\n" % (os.WSTOPSIG(status), times))
    os.tcsetpgrp(0, job)
    os.killpg(job, signal.SIGCONT)
    os.write(1, b"continued, time %d\n" % times)
os.write(1, b"ended %d\n" % os.waitstatus_to_exitcode(status))

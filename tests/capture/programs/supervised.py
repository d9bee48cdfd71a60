"""Run a job as the command line does: `supervised.py JOURNALS [-m | --] arguments...`."""

import os
import sys
from pathlib import Path

from loaderprof.capture.launch import job_command, job_environment, leave_as, supervise
from loaderprof.errors import LoaderprofError

journals, *arguments = sys.argv[1:]
Path(journals).mkdir(exist_ok=True)
module, launcher = arguments[0] == "-m", arguments[0] == "--"
try:
    command = job_command(arguments[module or launcher :], module, launcher)
    leave_as(supervise(command, job_environment(Path(journals), {}, os.environ)))
except LoaderprofError as error:
    sys.stderr.write(f"{error.message}\n{error.hint}\n")
    sys.exit(error.exit_code)

"""Count the signals that arrive, by name, until USR2 asks for the counts."""

import json
import os
import signal
import sys

counts: dict[str, int] = {}


def count(number: int, _: object) -> None:
    name = signal.Signals(number).name
    counts[name] = counts.get(name, 0) + 1
    if name == "SIGUSR2":
        os.write(1, json.dumps(counts).encode() + b"\n")
        sys.exit(0)
    os.write(1, name.encode() + b"\n")  # a whole line, whatever signal comes next


for each in ("INT", "TERM", "HUP", "USR1", "USR2", "ALRM", "WINCH", "XCPU", "ABRT", "CONT"):
    signal.signal(signal.Signals[f"SIG{each}"], count)
receive, send = os.pipe()
os.set_blocking(send, False)
signal.set_wakeup_fd(send)  # unlike pause(), cannot miss the signal that came just before
os.write(1, b"ready\n")
while True:
    os.read(receive, 1)

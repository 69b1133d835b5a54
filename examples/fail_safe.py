"""An output that fails safe: it is on for a moment after a fresh verdict OK, and at no other time.

    thesis detect bundle --watch in --json | python3 fail_safe.py "pinctrl set 17 op dh" "pinctrl set 17 op dl"

The first command switches the output on, the second off; both run without a shell. Off is what follows on anomalous,
error, silence, a line that is no verdict, a verdict that is told again after a restart, a clock that was set, the end
of the input and every signal that can be caught. A process that is killed switches nothing, and neither does a machine
that hangs: what is connected must itself fall back to "not OK" without a new pulse for each part.
Needs nothing but Python.
"""

import json
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

HOLD = 0.5          # seconds that an OK holds
FRESH = 2.0         # seconds after which a verdict is of an earlier part


def is_ok(line: bytes) -> bool:
    """Whether a line is a verdict OK of just now; nothing else is, whatever it looks like."""
    try:
        found = json.loads(line)
        age = (datetime.now(UTC) - datetime.fromisoformat(found["time"])).total_seconds()
        return found["verdict"] == "OK" and found["score"] <= found["threshold"] and -0.1 < age < FRESH
    except (ValueError, TypeError, KeyError):
        return False


def main(on: str, off: str) -> None:
    """Until the input ends."""
    def switch(command: str) -> None:
        subprocess.run(shlex.split(command), check=True, timeout=1, stdin=subprocess.DEVNULL)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    switch(off)
    try:
        rest, until = b"", 0.0                  # until: when the output goes off
        while True:
            left = until - time.monotonic()
            if until and left <= 0:
                switch(off)
                until = 0.0
            if not select.select([0], [], [], left if until else None)[0]:
                continue
            read = os.read(0, 65536)
            if not read:
                return
            *lines, rest = (rest + read).split(b"\n")
            verdicts = [line for line in lines if not line.startswith(b'{"heartbeat"')]
            if verdicts and is_ok(verdicts[-1]):            # of several at once the last is the part that is here
                switch(on)
                until = time.monotonic() + HOLD
            elif verdicts:
                switch(off)
                until = 0.0
    finally:
        switch(off)


if __name__ == "__main__":
    main(*sys.argv[1:])

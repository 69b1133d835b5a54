"""What a batch says while it runs: lines that stay, and in a terminal a last line that changes.

Names of tasks and where to write go in; `Board` writes what its tasks are at, also of several at a time.
"""

import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from thesis_lib.batch.plan import read_json

LATE_S = 60             # after its last time a notebook is late
ERASE = "\r\x1b[K"      # back to the begin of the line, and empty it


class Board:
    """Lines of the tasks of a batch, each known by its number from 1 on; may be called from several threads."""

    def __init__(self, names: Sequence[str], report: Callable[[str], None] = print) -> None:
        self.names, self.report = names, report
        self.terminal = report is print and sys.stdout.isatty()
        self.headings: dict[int, str] = {}              # of the tasks that run
        self.lock = threading.Lock()

    def say(self, number: int, text: str) -> None:
        """A line that stays."""
        with self.lock:
            self._say(number, text)

    def at(self, number: int, heading: str) -> None:
        """What a task is at: a line in a log, part of the last line of a terminal."""
        with self.lock:
            self.headings[number] = heading
            if self.terminal:
                self._show()
            else:
                self._say(number, f"at: {heading}")

    def end(self, number: int) -> None:
        """The task runs no more."""
        with self.lock:
            self.headings.pop(number, None)
            if self.terminal:
                self._show()

    def _say(self, number: int, text: str) -> None:
        if self.terminal:
            sys.stdout.write(ERASE)
        self.report(f"[{number}/{len(self.names)}] {self.names[number - 1]}  {text}")
        if self.terminal:
            self._show()
        sys.stdout.flush()

    def _show(self) -> None:
        line = " | ".join(f"{self.names[number - 1]}: {text}" for number, text in sorted(self.headings.items()))
        sys.stdout.write(ERASE + line[:shutil.get_terminal_size().columns - 1])
        sys.stdout.flush()


def watch(copy: Path, last: float | None, say: Callable[[str], None], at: Callable[[str], None]) -> Callable[[], None]:
    """What to call again and again while a notebook runs: tells each new heading, and once that it is late.

    copy: the executed copy, which papermill writes whenever a cell starts; last: seconds of the last time, if known.
    """
    began, changed, before, late = time.monotonic(), 0, "", False

    def look() -> None:
        nonlocal changed, before, late
        if last is not None and not late and time.monotonic() - began > last + LATE_S:
            late = True
            say(f"late: its last time here took {last:.0f} s")
        now = copy.stat().st_mtime_ns if copy.exists() else 0
        content = read_json(copy) if now != changed else None       # None, too, while it is being written
        if content:
            changed, heading = now, heading_of(content["cells"])
            if heading not in (None, before):
                before = heading
                at(heading)

    return look


def heading_of(cells: Iterable[Mapping[str, Any]]) -> str | None:
    """The last heading above the cell that is running; None where none is, or where no heading stands above it."""
    heading = None
    for cell in cells:
        if cell["cell_type"] == "markdown":
            text = re.sub(r"^```.*?^```", "", "".join(cell["source"]), flags=re.M | re.S)
            heading = (re.findall(r"^#+ +(.*\S)", text, re.M) or [heading])[-1]
        elif cell["metadata"].get("papermill", {}).get("status") == "running":
            return heading
    return None

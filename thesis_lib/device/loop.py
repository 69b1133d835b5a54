"""A folder goes in, a verdict for each picture that comes into it goes out, until it is told to stop.

`arrivals` says what is there, `run` finds, `verdicts` words it, `journal` remembers, `actions` acts. This module
decides the order, so that a kill at any moment loses no picture and scores none twice.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import DataError
from thesis_lib.device import actions, drift, run
from thesis_lib.device.arrivals import POLL, Arrivals
from thesis_lib.device.bundle import Bundle, Detection
from thesis_lib.device.journal import STATE, Journal, Key
from thesis_lib.device.verdicts import ERROR, OK, Judge, Verdict, now, shown

SETTLE = 5.0            # seconds without a change after which what does not decode is an error
LATER = 60.0            # seconds that a file with an error stays, as somebody may still write to it
HEARTBEAT = 10.0        # seconds
TRIES = 3               # starts that may end with the same picture in hand


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is done besides telling verdicts."""

    command: Sequence[str] = ()                         # words of `actions.command_of`, for what is not OK
    keep: int | None = None                             # copies of what was not OK
    done: Callable[[Path], None] | None = None          # of `actions.done_of`
    history: Path | None = None                         # of the light; by default beside the journal


class Loop:
    """Watches a folder with a bundle; ThesisError where another process does, or where it cannot be written to.

    tell: gets each verdict and must have passed it on when it returns. beat: gets a heartbeat. say: gets a line for
    people. Times between things are of the clock that never jumps; the clock of the day only stands in verdicts.
    """

    def __init__(self, bundle: Bundle, folder: str, *, engine: str = "float", threads: int | None = None,
                 options: Options, tell: Callable[[Verdict], None], beat: Callable[[dict[str, Any]], None],
                 say: Callable[[str], None]) -> None:
        self.folder, self.options, self.tell, self.beat, self.say = folder, options, tell, beat, say
        self.judge, self.arrivals = Judge(bundle, engine), Arrivals(folder)
        with ExitStack() as closing:
            self.journal = Journal(folder, say)
            closing.callback(self.journal.close)
            self.light = self._light(bundle, engine)
            self.find = closing.enter_context(run.opened(bundle, engine, threads))
            self._closing = closing.pop_all()
        self.counts: Counter[str] = Counter()
        self._waiting: dict[str, tuple[Key, float]] = {}    # does not decode yet: as it was tried, and since when
        self._due: dict[Key, float] = {}                    # done, and to be put away then
        self._beaten, self._saved = -float("inf"), 0        # the first heartbeat is due
        self._named: set[str] = set()                       # suffixes that were said to be ignored

    def run(self, stop: Callable[[], bool]) -> None:
        """Until stop() holds, which is asked between two pictures."""
        with self._closing:
            self._heartbeat()
            for key, record in list(self.journal.pending.items()):      # a kill came while it was told
                self._finish(key, Verdict(**record))
            while not stop():
                self.journal.check()
                present, told = self.arrivals.look(again=bool(self._waiting)), False
                if present is not None:
                    self._gone(present)
                for key in present or ():
                    if stop():
                        break
                    told |= self._picture(key)
                    self._heartbeat()
                self._heartbeat()
                if not told:
                    time.sleep(POLL)
            self._save()

    def _picture(self, key: Key) -> bool:
        """Score it where it is new; whether a verdict was told."""
        if self.journal.knows(key):
            if self.options.done is not None:           # of an earlier start it may be an error
                self._due.setdefault(key, time.monotonic() + LATER)
            self._put_away(key)
            return False
        tried, since = self._waiting.get(key.name, (None, 0.0))
        settled = tried == key and time.monotonic() - since >= SETTLE
        if tried == key and not settled:
            return False                                    # unchanged since it did not decode
        path, start = os.path.join(self.folder, key.name), time.perf_counter()
        try:
            found: Any = self._found(key, Path(path))
        except DataError as error:
            raw = Path(path).suffix.lower() in run.RAW      # which no waiting makes readable
            if not (settled or raw):
                self._waiting[key.name] = key, time.monotonic()
                return False
            found = error
        verdict = self.judge(path, found, start)
        after = self.arrivals.state(key.name)
        if after != key and (after is not None or verdict.verdict == ERROR):
            return False                                    # written to meanwhile: what was read is nobody's
        self._waiting.pop(key.name, None)
        self.counts[verdict.verdict] += 1
        # From here on it counts as scored, whatever happens.
        self.journal.scored(key, asdict(verdict))
        self._finish(key, verdict)
        if verdict.verdict != ERROR:
            for line in self.light.see(found.values):
                self.say(f"warning: {line}")
        return True

    def _found(self, key: Key, path: Path) -> Detection:
        """DataError, too, for a picture that has ended the process again and again: by the memory it takes, perhaps."""
        if self.journal.tries(key) >= TRIES:
            raise DataError(f"{path}: has ended this program {TRIES} times (out of memory?); remove it")
        self.journal.trying(key)
        return self.find(path)

    def _finish(self, key: Key, verdict: Verdict) -> None:
        """Tell it, act on it, note that it was told, put it away: in this order."""
        self.tell(verdict)
        path = Path(self.folder, key.name)
        if verdict.verdict != OK:
            if self.options.keep is not None:
                self._try(lambda: actions.keep(path, self.options.keep or 1), f"{shown(str(path))}: is not kept")
            if self.options.command:
                self._try(lambda: actions.run(self.options.command, verdict), f"{shown(str(path))}: --command")
        self.journal.finished(key)
        if verdict.verdict == ERROR:
            self._due[key] = time.monotonic() + LATER
        self._put_away(key)

    def _put_away(self, key: Key) -> None:
        """What --done asks for, once, of a picture that is still the one that was scored."""
        if self.options.done is None or time.monotonic() < self._due.get(key, 0):
            return
        self._due[key] = float("inf")
        if self.arrivals.state(key.name) == key:
            path, put_away = Path(self.folder, key.name), self.options.done
            self._try(lambda: put_away(path), f"{shown(str(path))}: stays where it is, --done")

    def _gone(self, present: Sequence[Key]) -> None:
        """Forget what is in the folder no more; say what is ignored, and what went before it was scored."""
        keys, names = set(present), {key.name for key in present}
        self.journal.forget_all_but(keys)
        self._due = {key: due for key, due in self._due.items() if key in keys}
        for name in [name for name in self._waiting if name not in names]:
            del self._waiting[name]
            self.say(f"{shown(os.path.join(self.folder, name))}: went before it could be read, and has no verdict")
        for suffix in sorted(self.arrivals.ignored - self._named):
            self._named.add(suffix)
            self.say(f"{self.folder}: files ending in {shown(suffix) or 'no suffix'} are not looked at")

    def _heartbeat(self) -> None:
        if time.monotonic() - self._beaten >= HEARTBEAT:
            self._beaten = time.monotonic()
            self.beat({"heartbeat": now(), **{name: self.counts[name] for name in (OK, "anomalous", ERROR)},
                       "waiting": len(self._waiting)})
            self._save()

    def _save(self) -> None:
        if self.counts.total() != self._saved:              # a card does not bear writing for nothing
            self._saved = self.counts.total()
            self._try(self.light.save, "the history of the light is not kept")

    def _light(self, bundle: Bundle, engine: str) -> drift.Watch:
        if self.options.history is not None:
            return run.watch(bundle, engine, self.options.history)
        file = Path(self.folder, STATE, "light.json")
        try:
            return run.watch(bundle, engine, file)
        except ThesisError as error:            # its own file, which a lost power may have damaged, stops nothing
            self.say(f"{error}; begun anew")
            file.unlink()
            return run.watch(bundle, engine, file)

    def _try(self, act: Callable[[], None], what: str) -> None:
        """A failure is a line, and not the end."""
        try:
            act()
        except OSError as error:
            self.say(f"{what}: {error.strerror or error}")
        except ThesisError as error:
            self.say(f"{what}: {error}")

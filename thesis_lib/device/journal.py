"""What of a watched folder is done: a file that survives a kill at any moment, and a lock that only one process holds.

A picture is known by its name, size and time of change. It goes in three times, one line each: `trying` before it is
opened, `scored` with its verdict before anybody is told, and `finished` after everybody was. A picture between the last
two was perhaps told: it is not scored again, and its verdict is told once more, letter by letter. Both files lie in
the hidden folder .thesis of the watched one. A process that is killed loses no line; a machine without power loses the
last seconds, whose pictures come again.
"""

import errno
import fcntl
import json
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from thesis_lib.core import files
from thesis_lib.core.errors import ThesisError

STATE = ".thesis"
SPARE = 1000            # lines of pictures that are gone, before the file is written anew


class Key(NamedTuple):
    """A picture: another size or time under an old name is another picture."""

    name: str
    size: int
    time_ns: int        # of its last change, as the file says


class Journal:
    """Of one watched folder; ThesisError where another process has it. say: is told when the disk is full."""

    def __init__(self, folder: str, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.file = Path(folder, STATE, "done.jsonl")
        self.pending: dict[Key, dict[str, Any]] = {}        # scored and not finished: one at most, unless told twice
        self.done: set[Key] = set()
        self._tries: dict[Key, int] = {}                    # starts before this one that had it in hand at their end
        self._fd: int | None = None
        self._lines, self._behind = 0, False                # behind: the file lacks something that is in memory
        try:
            self.file.parent.mkdir(exist_ok=True)
            # It is let go of by the system when the process ends, however it ends.
            self._lock = os.open(self.file.parent / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ThesisError(f"{folder}: is watched already by another process; needs a folder for each") from None
        except OSError as error:
            raise ThesisError(f"{folder}: cannot be watched ({error.strerror}); needs a folder that is there and "
                              f"that this user may write to, for {STATE}") from None
        self._read()
        self._rewrite()                                     # without the line that a kill has torn

    def knows(self, key: Key) -> bool:
        return key in self.done or key in self.pending

    def tries(self, key: Key) -> int:
        """How many earlier starts have opened this picture and said nothing of it."""
        return self._tries.get(key, 0)

    def trying(self, key: Key) -> None:
        """Before it is opened."""
        self._append(_line(key, self.tries(key) + 1))

    def scored(self, key: Key, verdict: dict[str, Any]) -> None:
        """Before anybody is told."""
        self._tries.pop(key, None)
        self.pending[key] = verdict
        self._append(_line(key, verdict))

    def finished(self, key: Key) -> None:
        """After everybody was told."""
        self.pending.pop(key, None)
        self.done.add(key)
        self._append(_line(key))

    def forget_all_but(self, keys: Collection[Key]) -> None:
        """What is in the folder no more; so the file is no longer than the folder."""
        self.done.intersection_update(keys)
        self._tries = {key: count for key, count in self._tries.items() if key in keys}
        if self._behind or self._lines > 2 * len(self.done) + SPARE:
            self._rewrite()

    def check(self) -> None:
        """ThesisError where the folder or its state is gone, for example because its disk was pulled."""
        with suppress(OSError):
            here, held = os.stat(self.file.parent / "lock"), os.fstat(self._lock)
            if (here.st_dev, here.st_ino) == (held.st_dev, held.st_ino):
                return
        raise ThesisError(f"{self.folder}: is gone, or its {STATE} is; start again when it is back; what was told "
                          "will not be told again")

    def close(self) -> None:
        for opened in (self._fd, self._lock):
            if opened is not None:
                os.close(opened)

    def _read(self) -> None:
        with suppress(FileNotFoundError):
            for line in self.file.read_bytes().split(b"\n"):
                try:
                    name, size, time_ns, *rest = json.loads(line)
                    key, said = Key(name, size, time_ns), rest[0] if rest else None
                except (ValueError, TypeError):             # torn by a kill or a lost disk: that picture comes again
                    continue
                if isinstance(said, int):
                    self._tries[key] = said
                elif said is not None:
                    self.pending[key] = said
                else:
                    self.pending.pop(key, None)
                    self.done.add(key)

    def _append(self, line: bytes) -> None:
        if self._fd is not None and not self._behind:
            with suppress(OSError):
                if os.write(self._fd, line) == len(line):
                    self._lines += 1
                    return
        self._rewrite()

    def _rewrite(self) -> None:
        """The whole file from memory; where that fails, again with the next line."""
        lines = [*map(_line, sorted(self.done)), *(_line(key, said) for entries in (self._tries, self.pending)
                                                  for key, said in entries.items())]
        try:
            with files.replaced(self.file) as partial:
                with partial.open("wb") as out:
                    out.writelines(lines)
                    out.flush()
                    os.fsync(out.fileno())
                opened = os.open(partial, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            if not self._behind:
                full = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
                self.say(f"{self.file}: cannot be written ({full}); pictures are told, and told again after a restart")
            self._behind = True
            return
        if self._fd is not None:
            os.close(self._fd)
        self._fd, self._lines, self._behind = opened, len(lines), False


def _line(key: Key, said: dict[str, Any] | int | None = None) -> bytes:
    return json.dumps([*key] if said is None else [*key, said]).encode() + b"\n"

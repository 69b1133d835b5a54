"""Which pictures lie in a folder, asked again and again at no cost to speak of: a folder goes in, keys come out."""

import errno
import os
import stat
import time
from pathlib import Path

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import SUFFIXES
from thesis_lib.device.journal import Key
from thesis_lib.device.run import RAW

POLL = 0.2              # seconds between two looks at the time of the folder
SHARE = 0.005           # of one processor, that reading the whole folder may take while nothing comes
WAIT = 1.0              # seconds at least between two readings of a folder whose own time has not changed


class Arrivals:
    """Of the pictures right in a folder: regular files of a picture's suffix whose names do not begin with a dot.

    A raw picture is among them, so that it is refused and not overlooked. Times are of the clock that never jumps.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.ignored: set[str] = set()          # suffixes of files that are no pictures
        self._changed: int | None = None        # time of the folder when it was read
        self._next = 0.0                        # when it is read again, though its time is the same

    def look(self, again: bool = False) -> list[Key] | None:
        """The pictures, that of the earliest change first; None where nothing can be new. again: read it in any case.

        The folder's own time tells of new names, not of files that were written over: these are found a second later
        at most where there are few files.
        """
        start = time.monotonic()
        try:
            changed = os.stat(self.folder).st_mtime_ns
            if changed == self._changed and start < self._next and not again:
                return None
            found = [key for entry in os.scandir(self.folder) if (key := self._key(entry)) is not None]
        except OSError as error:
            raise ThesisError(f"{self.folder}: cannot be read ({error.strerror}); start again when it is "
                              "back") from None
        self._changed = changed
        took = time.monotonic() - start
        self._next = start + max(WAIT, took / SHARE)
        return sorted(found, key=lambda key: (key.time_ns, key.name))

    def state(self, name: str) -> Key | None:
        """The picture of that name as it is now; None where it is gone."""
        try:
            return _key(name, os.stat(os.path.join(self.folder, name)))
        except OSError:
            return None

    def _key(self, entry: "os.DirEntry[str]") -> Key | None:
        if entry.name.startswith("."):
            return None
        suffix = Path(entry.name).suffix.lower()
        try:
            if suffix not in SUFFIXES | RAW:
                if entry.is_file() and len(self.ignored) < 100:
                    self.ignored.add(suffix)
                return None
            return _key(entry.name, entry.stat())
        except OSError as error:                # gone meanwhile, or a link to nowhere
            if error.errno in (errno.EIO, errno.ESTALE):
                raise                           # the disk fails: nobody knows whether it is gone
            return None


def _key(name: str, found: os.stat_result) -> Key | None:
    # A pipe would never end, and a folder is no picture.
    return Key(name, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None

"""What is done about a picture after its verdict was told: a command, a copy among the alarms, and where it goes.

A picture and its verdict go in; each function raises OSError or ThesisError where it fails, with what failed.
"""

import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.files import replaced
from thesis_lib.device.verdicts import Verdict

ALARMS = "alarms"       # folder in the watched one for copies of pictures that were not OK
LIMIT = 10.0            # seconds that a command may take
FIELDS = re.compile(r"\{(picture|score|verdict)\}")


def command_of(text: str) -> list[str]:
    """The words of a command as a shell would part them; ThesisError where they are none or the program is missing.

    >>> command_of("cp {picture} 'my alarms/'")
    ['cp', '{picture}', 'my alarms/']
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ThesisError(f"--command {text!r}: {error}; needs a program and its arguments") from None
    if not words or shutil.which(words[0]) is None:
        raise ThesisError(f"--command {text!r}: no program {words[0] if words else ''!r} is found; needs one that can "
                          "be started, without a shell")
    return words


def run(words: Sequence[str], verdict: Verdict) -> None:
    """The command without a shell; each field is filled into one word, whatever characters a name has."""
    fields = {"picture": verdict.picture, "score": "nan" if verdict.score is None else repr(verdict.score),
              "verdict": verdict.verdict}
    filled = [FIELDS.sub(lambda found: fields[found[1]], word) for word in words]
    # What it prints goes to the error output (2), not between the verdicts. Ctrl-C is for us; its children end with it.
    process = subprocess.Popen(filled, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True)
    try:
        code = process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise ThesisError(f"{words[0]}: took more than {LIMIT:g} s and was ended") from None
    if code:
        raise ThesisError(f"{words[0]}: ended with {f'exit code {code}' if code > 0 else f'signal {-code}'}")


def keep(picture: Path, count: int) -> None:
    """A copy in the folder `alarms` beside it, of which the last `count` stay.

    They are numbered, so that neither equal names nor a clock that was set decides which are the last.
    """
    folder = picture.parent / ALARMS
    folder.mkdir(exist_ok=True)
    kept = sorted((int(match[1]), file) for file in folder.iterdir() if (match := re.match(r"(\d{6,})_", file.name)))
    there = picture.stat()
    for _, file in kept:                        # after a kill it is told once more, and kept already
        found = file.stat()
        if file.name.partition("_")[2] == picture.name and \
                (found.st_size, found.st_mtime_ns) == (there.st_size, there.st_mtime_ns):
            return
    number = kept[-1][0] + 1 if kept else 0
    with replaced(folder / f"{number:06d}_{picture.name}") as partial:
        shutil.copy2(picture, partial)
    for _, file in kept[:max(0, len(kept) + 1 - count)]:
        file.unlink(missing_ok=True)


def done_of(text: str, folder: str) -> Callable[[Path], None]:
    """What happens to a picture that is done: `delete`, or `move:DIR`. ThesisError for anything else."""
    if text == "delete":
        return Path.unlink
    how, _, where = text.partition(":")
    if how != "move" or not where:
        raise ThesisError(f"--done {text}: needs delete or move:DIR")
    target = Path(where)
    try:
        target.mkdir(parents=True, exist_ok=True)
        if target.samefile(folder):
            raise ThesisError(f"--done {text}: is the watched folder itself; needs another one")
    except OSError as error:
        raise ThesisError(f"--done {text}: {error.strerror}; needs a folder that can be written to") from None
    return lambda picture: move(picture, target)


def move(picture: Path, folder: Path) -> None:
    """Into a folder, also on another disk; where the name is taken, a number is added to it."""
    target, number = folder / picture.name, 0
    while os.path.lexists(target):
        number += 1
        target = folder / f"{picture.stem}.{number}{picture.suffix}"
    try:
        os.rename(picture, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with replaced(target) as partial:       # there whole or not at all, and only then gone here
            shutil.copy2(picture, partial)
        picture.unlink()

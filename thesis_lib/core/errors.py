"""What went wrong and who can mend it: the user (`ThesisError`), or nobody but us (any other exception)."""

import errno


class ThesisError(ValueError):
    """Wrong input or data that the user can mend: one line that names the file or parameter and what would be right.

    The command line and the panels show its message alone; every other exception keeps its traceback.
    """


class NotFittedError(ThesisError):
    """A detector was asked for what only `fit` teaches it."""


class MissingPackageError(ThesisError):
    """A package is not installed that this part of the library needs; the message says how to get it."""


def one_line(error: BaseException) -> str:
    """First line of what an exception says, its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def user_message(error: BaseException) -> str | None:
    """The line that a user is shown for what they can mend: a ThesisError, a file that cannot be read or written, or a
    full disk, of which Python does not say the file.

    None for a defect of ours.
    """
    if isinstance(error, ThesisError):
        return str(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}: make room where outputs and temporary files go (THESIS_OUTPUTS, TMPDIR)"
    return None

"""Files that are there whole or not at all, hashes of what is in them, and a place for big ones that are not kept."""

import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from thesis_lib.core import paths


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it becomes `path` when the block ends well and is gone when it does not.

    The name is unique: several processes, on several machines, may write the same file, and one of them wins whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
    """The file is there whole or not at all, also when the process is killed."""
    with replaced(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def unnamed() -> BinaryIO:
    """An open file without a name below the outputs folder, gone when it is closed; /tmp may be memory."""
    return tempfile.TemporaryFile(dir=_scratch())


def scratch_folder() -> tempfile.TemporaryDirectory:
    """A folder below the outputs folder for big files that are needed for a moment."""
    return tempfile.TemporaryDirectory(dir=_scratch())


def digest(content: str | bytes | np.ndarray) -> str:
    """SHA-256 of a text, of bytes, or of all numbers of an array, in 64 hexadecimal digits."""
    if isinstance(content, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(content).data).hexdigest()
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def digest_of(file: Path) -> str:
    """SHA-256 of a file's content, read once for every state of it: a hundred configurations ask a hundred times."""
    state = file.stat()
    return _digest_of(file, state.st_mtime_ns, state.st_size)


@cache
def _digest_of(file: Path, changed: int, size: int) -> str:
    return digest(file.read_bytes())


def _scratch() -> Path:
    folder = paths.scratch()
    folder.mkdir(parents=True, exist_ok=True)
    return folder

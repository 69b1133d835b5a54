"""One bar where somebody watches, a log line per 20 % where nobody does, nothing in a rendered notebook."""

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

log = logging.getLogger("thesis_lib")
Step = TypeVar("Step")


def watched() -> bool:
    """True where a person sees what happens now: a terminal or JupyterLab, not the batch and not a log file.

    Widgets and bars appear only then.
    """
    return sys.stderr.isatty() or ("ipykernel" in sys.modules and "THESIS_BATCH" not in os.environ)


def bar(steps: Iterable[Step], **options: Any) -> "tqdm[Step]":
    """tqdm's bar where somebody watches, with tqdm's options; JupyterLab would leave a red field behind of what goes to
    stderr.
    """
    file = sys.stdout if "ipykernel" in sys.modules else sys.stderr
    return tqdm(steps, file=file, leave=False, disable=not watched(), **options)


def track(steps: Iterable[Step], total: int | None, what: str) -> Iterator[Step]:
    """Yield the steps; `total` in steps, None when not known beforehand."""
    next_share, silent = 0.2, not watched()
    for done, step in enumerate(bar(steps, desc=what, total=total), start=1):
        yield step
        if silent and total and done / total >= next_share:
            log.info("%s: %d of %d", what, done, total)
            next_share += 0.2

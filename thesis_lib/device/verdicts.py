"""What is said of one picture: a verdict goes in as a record, a line of JSON or of text comes out."""

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from thesis_lib.core import files
from thesis_lib.core.preprocess import DataError, size_of
from thesis_lib.core.unusual import Box, region
from thesis_lib.device.bundle import FACTS, Bundle, Detection

OK, ANOMALOUS, ERROR = "OK", "anomalous", "error"


@dataclass(frozen=True)
class Verdict:
    """OK, anomalous or error; the fields are the keys of its line of JSON, in this order."""

    time: str                       # UTC, ISO 8601
    picture: str                    # the path as given
    score: float | None             # None for an error
    threshold: float                # scores above it are anomalous
    verdict: str
    confidence: float | None        # None for an error, and for bundles of before it was known
    region: Box | None              # of an anomalous picture: x, y, w, h in pixels of the original
    milliseconds: float             # from opening the file to the verdict
    bundle: str                     # hash of bundle.json
    error: str | None = None        # why there is no score

    def json(self) -> str:
        """One line, ASCII whatever the name of the picture; `error` is there only where there is one."""
        return json.dumps({key: value for key, value in asdict(self).items() if key != "error" or value is not None},
                          allow_nan=False)

    def text(self) -> str:
        """One line: score, verdict, confidence and picture; of an error what it is."""
        if self.error is not None:
            return shown(self.error)
        confidence = "" if self.confidence is None else f"confidence {self.confidence:.3f}  "
        return f"{self.score:.4f}  {self.verdict:<9}  {confidence}{shown(self.picture)}"


class Judge:
    """What a bundle on an engine says of what it has found."""

    def __init__(self, bundle: Bundle, engine: str) -> None:
        self.bundle, self.engine, self.threshold = bundle, engine, bundle.threshold(engine)
        self.hash = files.digest_of(bundle.folder / FACTS)[:16]

    def __call__(self, picture: str, found: Detection | DataError, start: float) -> Verdict:
        """start: of `time.perf_counter`, when the picture was opened."""
        score = confidence = where = error = None
        verdict = ERROR
        if isinstance(found, Detection):
            score, confidence = found.score, self.bundle.confidence(self.engine, found.score)
            verdict = ANOMALOUS if score > self.threshold else OK
            if verdict == ANOMALOUS:
                try:
                    where = region(found.map, self.bundle.preprocess, size_of(Path(picture)))
                except DataError:               # it is gone already: the verdict stands, its place is not known
                    where = None
        else:
            error = str(found)
        return Verdict(now(), picture, score, self.threshold, verdict, confidence, where,
                       round((time.perf_counter() - start) * 1e3, 1), self.hash, error)


def now() -> str:
    """UTC to the millisecond.

    >>> len(now()) == len("2026-03-01T09:30:00.125Z")
    True
    """
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shown(text: str) -> str:
    r"""A name or a message in one line that can be printed, whatever is in it.

    >>> print(shown("a\nb.png"))
    a\nb.png
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)

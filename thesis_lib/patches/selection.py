"""The rows of a memory bank, found again where the same patches ask for them: rules, searches and banks share them.

Features (N, D) go in, the indices of the chosen rows and the seconds that choosing them took come out.
"""

import io
import json
import os
import time
import zipfile
from itertools import islice

import numpy as np

from thesis_lib.core import files, identity, paths
from thesis_lib.core.progress import track
from thesis_lib.patches import coreset


def select(features: np.ndarray, rows: int, *, seed: int, projection: int | None) -> tuple[np.ndarray, float]:
    """`coreset.select` with method greedy, and the seconds that an earlier call took for what was found, else 0.

    The order of a greedy choice does not depend on how many rows are asked for, so a shorter one is found, too. Kept
    beside the feature maps, named by a hash of all numbers of the features (N, D); may be deleted at any time.
    """
    if rows == len(features):
        return coreset.select(features, rows), 0.0
    deciding = [files.digest(features), features.shape, seed, projection, identity.key(coreset.__name__)]
    file = paths.features() / files.digest(json.dumps(deciding))[:32]
    try:
        with np.load(file, allow_pickle=False) as stored:
            order, seconds = stored["order"], stored["seconds"]
        os.utime(file)                              # the longest unused one goes first
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        order = seconds = np.zeros(0)
    if len(order) >= rows:
        return order[:rows], float(seconds[rows - 1])
    order, seconds, start = np.empty(rows, np.int64), np.empty(rows), time.perf_counter()
    choices = islice(coreset.greedy(features, seed=seed, projection=projection), rows)
    for number, row in enumerate(track(choices, rows, "coreset")):
        order[number], seconds[number] = row, time.perf_counter() - start
    content = io.BytesIO()
    np.savez(content, order=order, seconds=seconds)
    files.write(file, content.getvalue())
    return order, 0.0

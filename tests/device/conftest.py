"""A small set of pictures and the bundle that was exported from it, once for all tests of this room."""

import numpy as np
import pytest
from PIL import Image

from thesis_lib import data
from thesis_lib.commands import main

OPTIONS = ("--weights", "random", "--layers", "1", "--image-size", "64", "--bank", "20", "--calibration", "4",
           "--false-alarms", "10%")             # of ten pictures


@pytest.fixture(scope="session")
def category(tmp_path_factory):
    """10 training and 3 + 3 test pictures of 80 x 70 pixels, so that they are resized: noise, and a white square."""
    root, rng = tmp_path_factory.mktemp("set"), np.random.default_rng(0)
    for kind, count in (("train/good", 10), ("test/good", 3), ("test/hole", 3)):
        (root / "pad" / kind).mkdir(parents=True)
        for index in range(count):
            values = rng.integers(90, 130, (70, 80, 3), dtype=np.uint8)
            if kind == "test/hole":
                values[20:40, 30:50] = 255
            Image.fromarray(values).save(root / "pad" / kind / f"{index:03d}.png")
    return data.scan(root, "pad")


@pytest.fixture(scope="session")
def original(category, tmp_path_factory):
    """The bundle as `thesis export` wrote it; not to be changed."""
    out = tmp_path_factory.mktemp("exported") / "bundle"
    root = category.train[0].path.parents[3]
    where = ("--data", str(root), "--category", "pad")
    assert main.main(["export", "patchcore", *where, *OPTIONS, "--out", str(out)]) == 0
    return out

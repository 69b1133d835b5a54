"""A folder as people have it, made of the demo set."""

import numpy as np
import pytest
from PIL import Image

from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import Preprocess, levels_of, read_rgb
from thesis_lib.data import camera, synthetic
from thesis_lib.data.folders import scan, verify


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    drawn = tmp_path_factory.mktemp("drawn") / "demo"
    return scan(synthetic.write(drawn, categories="bracket", train=5, good=2, defective=4, size=64), "bracket")


def test_it_is_read_as_good_and_defective_parts_of_12_bits(original, tmp_path):
    bad = [sample for sample in original.test if sample.label]
    assert len(bad) < len(original.test)                # there are good test pictures, and they are left out
    found = scan(camera.write(tmp_path / "myset", original), "bracket")
    assert [sample.path.name for sample in found.train] == [
        "IMG_0001.tif", "IMG_0002.png", "IMG_0003.jpg", "IMG_0004.tif", "IMG_0005.png"]
    assert [sample.defect for sample in found.test] == [sample.defect for sample in bad] and found.cross_fitted
    assert found.test[0].path.name == "IMG_0006.jpg" and found.test[0].path.parent.parent.name == "NOK"
    line = verify(tmp_path / "myset").iloc[0]
    assert line["problems"] == "" and line["levels"] == "4096" and line["bits"] == "8, 16"


def test_the_pictures_are_the_original_ones_in_grey(original, tmp_path):
    found = scan(camera.write(tmp_path, original), "bracket")
    levels = levels_of([sample.path for sample in found.train])
    for before, after in zip(original.train, found.train, strict=True):
        grey = np.asarray(Image.open(before.path).convert("L"), dtype=float)
        seen = np.asarray(read_rgb(after.path, levels), dtype=float)
        assert np.ptp(seen, axis=2).max() == 0
        # Rounded twice, or a JPEG of high quality.
        assert np.abs(seen[..., 0] - grey).mean() < (3 if after.path.suffix == ".jpg" else 0.51)
    values = np.asarray(Image.open(found.train[0].path))
    assert values.dtype == np.uint16 and 255 < values.max() < camera.LEVELS
    assert len(np.unique(values)) > 256                 # more than 8 bits could hold
    assert Preprocess(image_size=64).decided(found.train).levels == camera.LEVELS


def test_nothing_is_overwritten(original, tmp_path):
    camera.write(tmp_path, original)
    with pytest.raises(ThesisError, match="bracket: is there already"):
        camera.write(tmp_path, original)

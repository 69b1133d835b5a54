"""Folders of its own for every test, and tiny pictures made with numpy and Pillow."""

import fcntl
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from thesis_lib import data
from thesis_lib.data import synthetic
from thesis_lib.networks import backbones


def pytest_collection_modifyitems(items):
    """All notebooks first: the longest test must not be the last that one of several processes begins."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """No test reads or writes data/ and outputs/ of the checkout."""
    monkeypatch.setenv("THESIS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("THESIS_OUTPUTS", str(tmp_path / "outputs"))


@pytest.fixture(autouse=True)
def roomy_disk(monkeypatch):
    """What a test keeps must not depend on how full this machine's disk is."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**12, used=0, free=10**12))


@pytest.fixture(autouse=True)
def same_threads():
    """A test that leaves another number of threads behind must not decide how the next ones run."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def networks_built_once():
    """The same random network again and again costs most of the time; a frozen one may be shared."""
    genuine, built = backbones.load, {}

    def load(name, layers, weights="imagenet", seed=0, tap="output"):
        key = name, tuple(layers), weights, seed, tap
        if weights != "random":
            return genuine(*key)
        if key not in built:
            built[key] = genuine(*key)
        return built[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "load", load)
        yield


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory, worker_id):
    """The whole generated set, written once per session: root/demo. Test processes side by side share it."""
    own = tmp_path_factory.getbasetemp()
    root = (own if worker_id == "master" else own.parent) / "generated"
    with open(root.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)        # until the file is closed
        if not root.is_dir():
            synthetic.write(own / "partial" / "demo")
            (own / "partial").rename(root)
    return root / "demo"


@pytest.fixture
def make_category(tmp_path):
    """make_category("pad", train=4, good=3, bad=3, ...) -> folder of categories (the same one at every call).

    Nominal pictures are noise around grey, anomalous ones (`hole`) have a white square, which is their mask.
    """
    root = tmp_path / "set"

    def save(file, values):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(file)

    def make(name="pad", *, train=4, good=3, bad=3, size=64, masks=True, suffix=".png", seed=0):
        rng = np.random.default_rng([seed, *name.encode()])
        folder = root / name
        for kind, count in (("train/good", train), ("test/good", good), ("test/hole", bad)):
            for index in range(count):
                values = rng.integers(90, 130, (size, size, 3), dtype=np.uint8)
                if kind == "test/hole":
                    mask = np.zeros((size, size), dtype=np.uint8)
                    row, column = rng.integers(0, size - size // 4, 2)
                    mask[row:row + size // 4, column:column + size // 4] = 255
                    values[mask > 0] = 255
                    if masks:
                        save(folder / "ground_truth/hole" / f"{index:03d}_mask.png", mask)
                save(folder / kind / f"{index:03d}{suffix}", values)
        return root

    return make


@pytest.fixture
def pad(make_category):
    """One scanned category of 4 training and 3 + 3 test pictures of 64 pixels, with masks."""
    return data.scan(make_category(), "pad")


@pytest.fixture
def small():
    """Preprocessing that leaves the pictures of `make_category` at their 64 pixels."""
    return data.Preprocess(image_size=64)


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium through playwright; the tests that need it are skipped where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def counted():
    """(class of `Pictures` that notes the size of every batch it reads, the list of those sizes)."""
    read = []

    class Counted(data.Pictures):
        def __iter__(self):
            for batch in super().__iter__():
                read.append(len(batch))
                yield batch

    return Counted, read

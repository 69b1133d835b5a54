"""Two processes that need the same network or the same maps at the same time do not hurt each other."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.core.together import together
from thesis_lib import data
from thesis_lib.core import paths
from thesis_lib.networks import backbones, maps, weightfiles
from thesis_lib.networks.maps import Extracted, Stored

SMALL = data.Preprocess(image_size=64)


def write_again_and_again(number, barrier, file):
    state = {name: torch.full((1000, 1000), float(number)) for name in ("one", "other")}
    barrier.wait()
    for _ in range(60):
        weightfiles.write(state, {"number": number}, file)
        for _ in range(3):
            one, other = weightfiles.read("resnet18", str(file)).values()
            assert one.min() == one.max() == other.min() == other.max()


def test_two_processes_may_write_the_same_weights(tmp_path):
    """One of them wins with numbers and card."""
    file = tmp_path / "new" / "weights.safetensors"
    together(write_again_and_again, file)
    one, other = weightfiles.read("resnet18", str(file)).values()
    assert one.shape == (1000, 1000) and torch.equal(one, other) and one.min() == one.max()
    with safetensors.safe_open(file, "pt") as content:
        assert content.metadata() == {"card": f'{{"number": {int(one[0, 0])}}}'}
    assert list(file.parent.iterdir()) == [file]


def test_a_crash_while_writing_keeps_the_old_weights(tmp_path, monkeypatch):
    """Whatever safetensors does: older ones write where they are told to, later ones beside it."""
    def crash(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("broken on purpose")

    file, state = tmp_path / "weights.safetensors", {"one": torch.ones(3)}
    weightfiles.write(state, {}, file)
    monkeypatch.setattr(safetensors.torch, "save_file", crash)
    with pytest.raises(OSError, match="on purpose"):
        weightfiles.write({"one": torch.zeros(3)}, {}, file)
    assert torch.equal(weightfiles.read("resnet18", str(file))["one"], state["one"])
    assert list(tmp_path.iterdir()) == [file]


class Watched:
    """A network that counts the pictures it is shown, and first calls `before`."""

    def __init__(self, network, before=lambda: None):
        self.network, self.before, self.shown = network, before, 0

    def __getattr__(self, name):
        return getattr(self.network, name)

    def __call__(self, images):
        self.before()
        self.shown += len(images)
        return self.network(images)


def fill(number, barrier, root):
    """Both are in the middle of the same maps at every batch, and then find what was kept."""
    maps.SPARE_GB = 0.0         # the other process does not know the roomy disk of the tests
    torch.set_num_threads(1)
    network = backbones.load("resnet18", (1, 2), "random")
    for batch_size in (2, 3):
        pictures = data.Pictures(data.scan(root, "pad").train, SMALL, batch_size)
        for before, count in ((barrier.wait, 6), (lambda: None, 0)):
            watched = Watched(network, before)
            check(watched, pictures)
            assert watched.shown == count
            barrier.wait()


def check(network, pictures):
    """The stored maps are those of the network, level by level."""
    stored = list(Stored(Extracted(network, pictures)).batches(network.layers))
    for features, images in zip(stored, pictures, strict=True):
        for level, x in network.network(images).items():
            assert torch.equal(features[level], x)


def test_two_processes_may_keep_the_same_maps(make_category):
    root = make_category(train=6)
    together(fill, root)
    torch.set_num_threads(1)
    kept = list(paths.features().iterdir())
    assert {file.suffix for file in kept} == {"", ".json"}, "something half done is left"
    assert len(kept) == 2 * 2 * 2       # maps and facts, two levels, two sizes of a batch
    watched = Watched(backbones.load("resnet18", (1, 2), "random"))
    for batch_size in (2, 3):
        check(watched, data.Pictures(data.scan(root, "pad").train, SMALL, batch_size))
    assert watched.shown == 0

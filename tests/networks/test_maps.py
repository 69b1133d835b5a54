"""Stored feature maps are the extracted ones, level by level and batch by batch, also when they are found again."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from thesis_lib import data
from thesis_lib.core import paths
from thesis_lib.core.preprocess import DataError
from thesis_lib.evaluation import scores
from thesis_lib.methods import PatchCore, UninformedStudents
from thesis_lib.networks import backbones, engines
from thesis_lib.networks.maps import Extracted, Stored

IMAGES = list(torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0)).split(2))


@pytest.fixture(scope="module")
def network():
    return backbones.load("resnet18", (1, 2, 3), "random")


@pytest.mark.parametrize("layers", [(1,), (3,), (1, 3), (1, 2, 3)])
def test_stored_equals_extracted(network, layers):
    extracted = Extracted(network, IMAGES)
    stored = Stored(extracted)
    assert stored.seconds == extracted.seconds == 0         # nobody has asked for a map
    for kind in (extracted, stored, stored):                # a second time, too
        batches = list(kind.batches(layers))
        assert [len(batch[layers[0]]) for batch in batches] == [2, 2, 1]
        for batch, images in zip(batches, IMAGES, strict=True):
            assert tuple(batch) == layers
            assert all(torch.equal(batch[level], network(images)[level]) for level in layers)
    assert stored.seconds > 0 == stored.found_seconds


def test_a_level_that_was_not_extracted_is_an_error(network):
    with pytest.raises(KeyError):
        next(Stored(Extracted(network, IMAGES)).batches((4,)))


def test_samples_stay_known(network, pad, small):
    """The guard against test pictures asks for them."""
    extracted = Extracted(network, data.Pictures(pad.train, small))
    assert Stored(extracted).samples == extracted.samples == pad.train
    assert Extracted(network, IMAGES).samples == ()


def test_nothing_is_refused(network):
    with pytest.raises(ValueError, match="no pictures"):
        next(Stored(Extracted(network, [])).batches((1,)))


class Counting:
    """A network that counts the pictures it is shown."""

    def __init__(self, network):
        self.network, self.shown = network, 0

    def __getattr__(self, name):
        return getattr(self.network, name)

    def __call__(self, images):
        self.shown += len(images)
        return self.network(images)


def shown(network, pictures) -> int:
    """Pictures that go through the network; what comes back is what it says, level by level."""
    counting = Counting(network)
    stored = list(Stored(Extracted(counting, pictures)).batches(network.layers))
    for features, images in zip(stored, pictures, strict=True):
        for level, maps in network(images).items():
            torch.testing.assert_close(features[level], maps, rtol=0, atol=0)
    return counting.shown


def kept():
    return sorted(file for file in paths.features().iterdir() if not file.suffix)


def test_maps_of_pictures_are_found_again(network, pad, small):
    pictures = data.Pictures(pad.train, small, batch_size=3)
    assert shown(network, pictures) == len(pad.train) > 3
    assert shown(network, data.Pictures(pad.train, small, batch_size=3)) == 0
    assert shown(network.cut((2,)), pictures) == shown(network.cut((1, 3)), pictures) == 0
    first, second = (Stored(Extracted(network, pictures)) for _ in range(2))
    assert next(first.batches((1,))) and next(second.batches((2,)))
    assert first.seconds == first.found_seconds == second.seconds > 0           # that of the first time


def test_only_missing_levels_are_computed(network, pad, small):
    pictures = data.Pictures(pad.train, small)
    assert shown(network.cut((1, 2)), pictures) == len(pad.train)
    before = {file: file.stat().st_ino for file in kept()}
    assert len(before) == 2
    assert shown(network, pictures) == len(pad.train)
    assert {file: file.stat().st_ino for file in kept() if file in before} == before and len(kept()) == 3


def test_maps_of_anything_else_are_not_found(network, pad, small, tmp_path):
    def all_new(network, samples=pad.train, preprocess=small, batch_size=8):
        return shown(network, data.Pictures(samples, preprocess, batch_size)) == len(samples)

    assert all_new(network)
    assert all_new(network, preprocess=data.Preprocess(image_size=64, interpolation="nearest"))
    assert all_new(network, batch_size=2)               # other kernels, other last bits
    assert all_new(network, samples=pad.train[1:])
    assert all_new(backbones.load("resnet18", (1, 2, 3), "random", seed=1))
    assert all_new(backbones.load("resnet18", (1, 2, 3), "random", tap="preactivation"))
    assert all_new(engines.build("resnet18", (1, 2, 3), "random", "fast"))
    assert not all_new(network)
    pixels = np.asarray(Image.open(pad.train[0].path)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(pad.train[0].path)
    assert all_new(network)


def test_the_longest_unused_maps_go_first(network, pad, small, monkeypatch):
    first, second, third = (network.cut((level,)) for level in (1, 2, 3))
    pictures = data.Pictures(pad.train, small)
    for age, cut in ((30, first), (20, second)):
        assert shown(cut, pictures)
        newest = max(kept(), key=lambda file: file.stat().st_mtime)
        os.utime(newest, (newest.stat().st_atime, newest.stat().st_mtime - age))
    assert not shown(first, pictures)                   # used: now the second is unused for longest
    size = sum(file.stat().st_size for file in kept())
    monkeypatch.setenv("THESIS_FEATURES_GB", str(size / 1e9))
    assert shown(third, pictures)
    assert not shown(third, pictures) and not shown(first, pictures)
    assert sum(file.stat().st_size for file in kept()) <= size
    assert shown(second, pictures)


@pytest.mark.parametrize("limit", ["0", "1e-6"])
def test_nothing_is_kept_over_the_limit(network, pad, small, monkeypatch, limit):
    monkeypatch.setenv("THESIS_FEATURES_GB", limit)
    pictures = data.Pictures(pad.train, small)
    assert shown(network, pictures) == shown(network, pictures) == len(pad.train)
    assert not paths.features().exists() or not kept()


def test_a_full_disk_is_told_once_and_stays_as_it_is(network, pad, small, monkeypatch, caplog):
    pictures = data.Pictures(pad.train, small)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2.0e9))
    for _ in range(2):
        assert shown(network, pictures) == len(pad.train)
    told, = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert told.endswith("features: this disk is too full to keep feature maps of 0.00 GB and leave 2 GB free; "
                         "they will be computed again")
    assert not kept()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2.1e9))
    assert shown(network, pictures) == len(pad.train) and len(kept()) == 3
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2.0e9))
    assert shown(network, pictures) == 0, "what is kept already makes room for itself"


@pytest.mark.parametrize("limit", ["much", "-1", "nan"])
def test_a_limit_that_is_none_is_named(network, pad, small, monkeypatch, limit):
    monkeypatch.setenv("THESIS_FEATURES_GB", limit)
    with pytest.raises(ValueError, match=f"THESIS_FEATURES_GB='{limit}'"):
        shown(network, data.Pictures(pad.train, small))


@pytest.mark.parametrize("damage", ["picture", "file", "facts"])
def test_what_is_not_whole_is_not_used(network, pad, small, damage):
    if damage == "picture":
        pictures = data.Pictures(pad.train, small, batch_size=2)
        pad.train[-1].path.write_bytes(b"no picture")
        with pytest.raises(DataError, match=pad.train[-1].path.name):
            shown(network, pictures)
        assert not list(paths.features().iterdir())     # nothing half done is left
        return
    pictures = data.Pictures(pad.train, small)
    assert shown(network, pictures)
    for file in kept():
        file = file if damage == "file" else file.with_suffix(".json")
        file.write_bytes(file.read_bytes()[:-8])
    assert shown(network, pictures) == len(pad.train)


def test_rows_do_not_depend_on_what_is_kept(pad, small, monkeypatch):
    """Later and from kept maps, they are what they were; the seconds of fit count the extraction."""
    detector = PatchCore(layers=(1, 2), weights="random", bank=20)
    at_once = scores.evaluate(detector, pad, small, seeds=2)
    monkeypatch.setattr(data.Preprocess, "array", None)
    again = scores.evaluate(detector, pad, small, seeds=2, force=True)
    assert list(again.scores) == list(at_once.scores) and list(again.image_auroc) == list(at_once.image_auroc)
    alone = scores.evaluate(detector, pad, small, seeds=2, force=True, pixels=False)        # rounded in another order
    np.testing.assert_allclose([*alone.scores], [*at_once.scores], rtol=1e-5)
    stored = Stored(Extracted(backbones.load("resnet18", (1, 2), "random"), data.Pictures(pad.train, small)))
    assert next(stored.batches((1,)))
    assert (again.fit_s > stored.seconds).all() and stored.seconds > 0


def test_a_method_that_asks_for_no_maps_gets_none(pad, small):
    """Uninformed Students look at the pictures alone."""
    detector = UninformedStudents(weights="random", patch_sizes=(17,), channels=2, students=1, stride=16,
                                  source="nominal", teacher_steps=1, epochs=1)
    scores.evaluate(detector, pad, small, seeds=1, pixels=False)
    assert not list(paths.features().iterdir())


def test_what_a_killed_process_left_half_written_goes_after_a_day(pad, small):
    """What another process writes to just now stays."""
    folder = paths.features()
    folder.mkdir(parents=True)
    old, new = folder / "a.1.partial", folder / "b.2.partial"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    network = backbones.load("resnet18", (1,), "random")
    next(Stored(Extracted(network, data.Pictures(pad.train, small))).batches((1,)))
    assert not old.exists() and new.exists()


def test_maps_that_are_not_finite_name_the_picture(pad, small):
    class Diverged(Counting):
        def __call__(self, images):
            features = super().__call__(images)
            features[1][-1, 0, 0, 0] = float("nan")
            return features

    extracted = Extracted(Diverged(backbones.load("resnet18", (1,), "random")), data.Pictures(pad.train, small, 3))
    with pytest.raises(ValueError, match=r"002.png: its feature maps of level 1 hold NaN"):
        next(extracted.batches((1,)))

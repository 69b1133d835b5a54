"""Stored feature maps are the extracted ones, level by level and batch by batch."""

import pytest
import torch

from thesis_lib import backbones, data
from thesis_lib.features import Extracted, Stored

IMAGES = list(torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0)).split(2))


@pytest.fixture(scope="module")
def network():
    return backbones.load("resnet18", (1, 2, 3), "random")


@pytest.mark.parametrize("layers", [(1,), (3,), (1, 3), (1, 2, 3)])
def test_stored_equals_extracted(network, layers):
    extracted = Extracted(network, IMAGES)
    stored = Stored(extracted)
    assert stored.seconds > 0
    for kind in (extracted, stored, stored):                # a second time, too
        batches = list(kind.batches(layers))
        assert [len(batch[layers[0]]) for batch in batches] == [2, 2, 1]
        for batch, images in zip(batches, IMAGES, strict=True):
            assert tuple(batch) == layers
            assert all(torch.equal(batch[level], network(images)[level]) for level in layers)


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
        Stored(Extracted(network, []))

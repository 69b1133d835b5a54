"""What the training pictures cannot give is told in one line before one of them is read, and nothing else is."""

import sys

import pytest
import torch

from tests.methods.test_detectors import TRAIN, make
from thesis_lib import data
from thesis_lib.core.errors import ThesisError
from thesis_lib.evaluation import scores, stage_times
from thesis_lib.methods import METHODS, PatchCore
from thesis_lib.networks import backbones

pytestmark = pytest.mark.usefixtures("networks_built_once")

ROWS, TOO_FEW = "the patches of the training pictures", "1 training picture: one is held out, so it needs at least 2"
NO_DEVICE = ({"torch_device": "abacus"}, 4, 64, "torch_device=abacus: needs cpu, or cuda where there is one")
# Parameters, training pictures, their side, how the line begins. Level 1 of 64 pixels: 16 x 16 patches of 64 numbers.
IMPOSSIBLE = {"patchcore": [
    ({"bank": 99_999_999}, 4, 64, f"bank=99999999: is 99999999 rows, needs 1 to 1024, {ROWS}"),
    ({"bank": 1025}, 4, 64, f"bank=1025: is 1025 rows, needs 1 to 1024, {ROWS}"),
    ({"bank": "0.01%"}, 4, 64, f"bank='0.01%': is 0 rows, needs 1 to 1024, {ROWS}"),
    ({"embedding": "avg_k3_s2_p1", "bank": 257}, 4, 64, f"bank=257: is 257 rows, needs 1 to 256, {ROWS}"),
    ({"score": "reweighted", "neighbours": 21}, 4, 64, "neighbours=21: needs at most 20, the rows of bank=20"),
    ({"score": "author_cdist", "bank": "1%", "neighbours": 11}, 4, 64, "neighbours=11: needs at most 10, the rows of "
                                                                       "bank=1%"),
    ({"embedding": "max_k9_s1_p0", "layers": (4,)}, 4, 64, "max_k9_s1_p0: kernel is larger than the padded map, in + "
                                                           "2p = 2 < k = 9"),
    ({"layers": (1, 3)}, 4, 72, "join=repeat: a map of 5x5 does not repeat block-wise onto 18x18"),
    ({"backbone": "pdn_small"}, 4, 32, "images of shape (1, 3, 32, 32): pdn_small needs at least 33x33 pixels"),
    ({"memory_limit_gb": 1e-4}, 4, 64, "1024 patches of dimension 64 need 0.00 GB, the limit is 0.00 GB")],
    "spade": [
    ({"k": 5}, 4, 64, "k=5: needs 1 to 4, the training pictures"),
    ({"k": 2, "kappa": 513}, 4, 64, "kappa=513: the gallery of k=2 pictures has 512 patches")],
    "padim": [
    ({}, 1, 64, "1 training picture: a covariance needs at least 2"),
    ({"channels": 65}, 4, 64, "channels=65: layers 1 have 64"),
    ({"embedding": "original_d8", "channels": 9}, 4, 64, "channels=9: layers 1 have 8"),
    ({"memory_limit_gb": 0.2}, 4, 64, "Gaussians of 256 positions and 8 channels need 0.25 GB, the limit is 0.20 GB")],
    "simplenet": [
    NO_DEVICE, ({"embedding": "avg_k40_s1_p0"}, 4, 64, "avg_k40_s1_p0: kernel is larger than the padded map")],
    "uninformed_students": [
    NO_DEVICE, ({}, 1, 64, TOO_FEW),
    ({"patch_sizes": (17, 65)}, 4, 64, "images of 64x64 pixels: patch_sizes=(17, 65) do not fit into them")],
    "efficientad": [
    NO_DEVICE, ({}, 1, 64, TOO_FEW), ({}, 4, 72, "images of 72x72 pixels: the autoencoder needs squares of 64, 96, ")]}
CASES = [(name, *case) for name, cases in IMPOSSIBLE.items() for case in cases]
WAYS = {"fit": lambda detector, category, preprocess, kind: detector.fit(kind(category.train, preprocess)),
        "evaluate": lambda detector, category, preprocess, kind: scores.evaluate(detector, category, preprocess),
        "time": lambda detector, category, preprocess, kind: stage_times.measure_time(detector, category, preprocess)}


def test_every_method_is_here():
    assert set(IMPOSSIBLE) == set(METHODS)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "parameters", "count", "side", "told"), CASES)
def test_it_is_told_before_a_picture_is_read(name, parameters, count, side, told, way, make_category, counted,
                                             monkeypatch):
    category = data.scan(make_category(train=count, good=1, bad=1, size=32), "pad")
    kind, read = counted
    for module in (scores, stage_times):
        monkeypatch.setattr(module, "Pictures", kind)
    with pytest.raises(ThesisError) as caught:
        WAYS[way](make(name, **parameters), category, data.Preprocess(image_size=side), kind)
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value) and read == []


@pytest.mark.parametrize("name", METHODS)
def test_what_can_be_is_let_through(name):
    """Just so many pictures, just so many rows: the limits themselves are no error."""
    least = {"spade": {"k": 2, "kappa": 512}, "padim": {"channels": 64}, "patchcore": {"bank": 2 * 256},
             "uninformed_students": {"patch_sizes": (33,)}}.get(name, {})
    make(name, **least).check_pictures(2, 64)
    assert make(name, **least).fit([TRAIN[0][:2]]).predict(TRAIN[0][:1]).map.isfinite().all()
    if name == "patchcore":
        make(name, score="reweighted", neighbours=20).check_pictures(1, 64)


@pytest.mark.parametrize("side", [32, 63, 64, 100])
@pytest.mark.parametrize("embedding", ["identity", "avg_k3_s2_p1", "max_k2_s1_p0", "avgmax_k3_s1_p1", "adaptive_3",
                                       "original_d24"])
@pytest.mark.parametrize(("backbone", "layers"), [("resnet18", (1,)), ("resnet18", (2, 3)), ("convnext_tiny", (1, 2)),
                                                  ("pdn_small", (1,))])
def test_patches_are_foreseen_as_they_come(backbone, layers, embedding, side):
    """The same numbers, or the same words where there are none."""
    detector = PatchCore(backbone=backbone, layers=layers, weights="random", embedding=embedding)

    def real():
        features = backbones.load(backbone, layers, "random")(torch.zeros(1, 3, side, side))
        return tuple(detector.embed_of()(features).vectors.shape[1:])

    def outcome(call):
        try:
            return call()
        except ThesisError as error:
            return str(error)

    assert outcome(lambda: detector.shape(side)) == outcome(real)


def test_looking_ahead_draws_no_random_number():
    backbones.maps.cache_clear()
    before = torch.get_rng_state()
    make("patchcore").check_pictures(4, 64)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("engine", ["fast", "int8"])
def test_a_missing_package_is_told_before_the_training(engine, pad, small, counted, monkeypatch):
    """EfficientAD trains in torch and would ask for ONNX Runtime only afterwards."""
    kind, read = counted
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ThesisError, match="need the package onnxruntime"):
        make("efficientad", engine=engine).fit(kind(pad.train, small))
    assert read == []

"""One battery for every detector in METHODS, with the smallest settings that do something."""

import functools
import json
import random

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from thesis_lib import data
from thesis_lib.core.errors import NotFittedError, ThesisError
from thesis_lib.core.memory import MemoryLimitError
from thesis_lib.evaluation import metrics, scores, stage_times
from thesis_lib.evaluation.thesis import STAGES
from thesis_lib.methods import METHODS, Detector, PatchCore, Prediction
from thesis_lib.methods.trained import Trained
from thesis_lib.networks import backbones
from thesis_lib.patches import search

pytestmark = pytest.mark.usefixtures("networks_built_once")

NETWORK = {"backbone": "resnet18", "layers": (1,), "weights": "random"}
TINY = {"patchcore": {**NETWORK, "bank": 20}, "spade": {**NETWORK, "k": 2}, "padim": {**NETWORK, "channels": 8},
        "simplenet": {**NETWORK, "hidden": 16, "noise": 0.5, "epochs": 2, "passes": 6, "batch": 2,
                      "adaptor_rate": 1e-3, "discriminator_rate": 2e-2},
        "uninformed_students": {**NETWORK, "patch_sizes": (33,), "channels": 4, "source": "nominal", "teacher_steps": 2,
                                "teacher_batch": 16, "students": 2, "epochs": 2, "rate": 1e-3},
        "efficientad": {"weights": "random", "steps": 2, "penalty": "none"}}
# Parameter -> another value, and what else must be set for it to matter. "weights" is tested by itself.
ENGINE = {"engine": ("int8", {}), "calibration": (1, {"engine": "int8"})}
TRAINING = {"snapshots": (1, {}), "resume": (False, {}), "checkpoint_s": (0.0, {}), "torch_device": ("cuda", {}),
            "precision": ("bfloat16", {})}
OTHER = {"patchcore": {
    "seed": (1, {}), "backbone": ("resnet34", {}), "layers": ((2,), {}), "weights": (None, {}), **ENGINE,
    "tap": ("preactivation", {}), "activation": ("sigmoid", {}), "scaling": ("normalise", {}),
    "entropy_base": (2.718281828, {"scaling": "normalise_weight"}),
    "embedding": ("max_k3_s1_p1", {}), "join": ("interpolate", {"layers": (1, 2)}), "bank": (30, {}),
    "coreset": ("random", {}), "projection": (4, {}), "search": ("faiss", {}), "distance": ("l2_squared", {}),
    "score": ("reweighted", {}), "neighbours": (3, {"score": "reweighted"}), "search_threads": (1, {}),
    "memory_limit_gb": (3.0, {}), "tiles": ((2, 1), {})},
    "spade": {
    "seed": (1, {}), "backbone": ("resnet34", {}), "layers": ((1, 2), {"pooled": 1}), "pooled": (2, {}),
    "weights": (None, {}), **ENGINE, "k": (3, {}), "kappa": (2, {}), "distance": ("l2", {}),
    "embedding": ("avg_k3_s1_p1", {}), "join": ("interpolate", {"layers": (1, 2)}), "search": ("faiss", {}),
    "search_threads": (1, {}), "tiles": ((2, 1), {})},
    "padim": {
    "seed": (1, {}), "backbone": ("resnet34", {}), "layers": ((2,), {}), "weights": (None, {}), **ENGINE,
    "embedding": ("avg_k3_s2_p1", {}), "join": ("interpolate", {"layers": (1, 2)}), "channels": (9, {}),
    "eps": (0.1, {}), "covariance": ("diagonal", {}), "sigma": (0.0, {}), "memory_limit_gb": (3.0, {}),
    "tiles": ((2, 1), {})},
    "simplenet": {
    "seed": (1, {}), "backbone": ("resnet34", {}), "layers": ((2,), {}), "weights": (None, {}), **ENGINE,
    "embedding": ("avg_k3_s2_p1", {}), "join": ("interpolate", {"layers": (1, 2)}), **TRAINING, "hidden": (8, {}),
    "noise": (0.1, {}), "margin": (0.3, {}), "epochs": (3, {}), "passes": (5, {}), "batch": (3, {}),
    "adaptor_rate": (1e-2, {}), "discriminator_rate": (1e-3, {}), "batch_norm": ("running", {}),
    "tiles": ((2, 1), {})},
    "uninformed_students": {
    "seed": (1, {}), "backbone": ("resnet34", {}), "layers": ((2,), {}), "weights": (None, {}), "engine": ("eager", {}),
    **TRAINING, "patch_sizes": ((17,), {}), "channels": (8, {}), "stride": (8, {}), "source": ("procedural", {}),
    "teacher_steps": (3, {}), "teacher_batch": (32, {}), "teacher_rate": (1e-2, {}), "teacher_seed": (1, {}),
    "compactness": (0.0, {}), "metric": (1.0, {"teacher_batch": 32}), "students": (3, {}), "epochs": (3, {}),
    "rate": (1e-2, {}), "decay": (10.0, {}), "held_out": (0.4, {})},
    "efficientad": {
    "seed": (1, {}), "backbone": ("pdn_medium", {}), "weights": (None, {}), **ENGINE, **TRAINING,
    "steps": (3, {}), "penalty": ("procedural", {}), "held_out": (0.4, {}), "hard": (0.9, {}), "low": (0.5, {}),
    "high": (0.9999, {}), "rate": (1e-2, {}), "decay": (10.0, {})}}
CASES = [(name, parameter) for name, others in OTHER.items() for parameter in others
         if parameter not in ("weights", "torch_device", "tiles")       # of 64 pixels a tile sees all: see test_shapes
         and not (parameter == "engine" and others["engine"][0] == "eager")]


def images(count, seed=0):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


TRAIN, TEST = list(images(6).split(4)), images(3, seed=1)


def make(name, **parameters):
    return METHODS[name](**{**TINY[name], **parameters})


def fitted(name, **parameters):
    return make(name, **parameters).fit(TRAIN)


def answers(detector, batch=TEST):
    prediction = detector.predict(batch)
    return prediction.score, prediction.map


def walked(detector, x):
    """What the stages make of it one after the other."""
    for stage in detector.stages.values():
        x = stage(x)
    return x


def numbers(collected):
    """All that was collected in one array, whatever parts it has."""
    return np.concatenate([np.ravel(part) for part in collected]) if isinstance(collected, tuple) else np.array(
        collected)


def same(one, other):
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


QUANTISED = [name for name in METHODS if "calibration" in make(name).parameters()]


@pytest.fixture(params=QUANTISED)
def quantised(request):
    """Methods that run on other engines than eager, too."""
    return request.param


def test_every_method_and_every_parameter_is_in_the_battery():
    assert set(TINY) == set(OTHER) == set(METHODS) == {*QUANTISED, "uninformed_students"}
    for name, method in METHODS.items():
        assert set(OTHER[name]) == set(make(name).parameters())
        assert method.name == name


def test_fit_returns_self_and_prediction_has_its_shapes(name):
    detector = make(name)
    assert detector.fit(TRAIN) is detector
    prediction = detector.predict(TEST)
    assert isinstance(prediction, Prediction)
    assert prediction.score.shape == (3,)
    assert prediction.map.ndim == 3
    assert len(prediction.map) == 3
    assert torch.isfinite(prediction.score).all()
    assert prediction.full_map(64).shape == (3, 64, 64)
    assert prediction.sigma == detector.map_sigma == {"efficientad": 0, "uninformed_students": 0}.get(name, 4)


def test_refit_replaces(name):
    detector = fitted(name)
    first, size = answers(detector), {key: value.shape for key, value in detector.state().items()}
    detector.fit(list(images(6, seed=9).split(4)))
    assert not same(answers(detector), first)
    detector.fit(TRAIN)
    assert same(answers(detector), first)
    assert {key: value.shape for key, value in detector.state().items()} == size


def test_batch_equals_one_by_one(name):
    detector = fitted(name)
    singles = [answers(detector, image[None]) for image in TEST]
    for together, *alone in zip(answers(detector), *singles, strict=True):
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_how_training_pictures_are_batched_does_not_matter(name):
    one_by_one = make(name).fit(images(6).split(1))
    for a, b in zip(answers(one_by_one), answers(fitted(name)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_input_is_left_unchanged(name):
    train, test = [batch.clone() for batch in TRAIN], TEST.clone()
    make(name).fit(train).predict(test)
    assert torch.equal(torch.cat(train), torch.cat(TRAIN))
    assert torch.equal(test, TEST)


def test_same_seed_same_result_other_seed_other_result(name):
    assert same(answers(fitted(name, seed=4)), answers(fitted(name, seed=4)))
    assert same(answers(fitted(name, seed=4)), answers(fitted(name, seed=5))) != make(name).seeded


def test_predict_twice_gives_the_same(name):
    detector = fitted(name)
    assert same(answers(detector), answers(detector))


def test_reseeded_shares_the_collected_and_nothing_else(name):
    detector = make(name)
    collected = detector.collect(TRAIN)
    one, other = detector.reseeded(4).learn(collected), detector.reseeded(5).learn(collected)
    assert same(answers(one), answers(fitted(name, seed=4)))
    assert same(answers(other), answers(fitted(name, seed=5)))
    assert detector.seed == 0
    with pytest.raises(NotFittedError):
        detector.predict(TEST)


def test_stages_fold_to_predict_and_shared_ones_lead(name):
    detector = fitted(name)
    x = walked(detector, TEST)
    assert same((x.score, x.map), answers(detector))
    assert tuple(detector.stages)[:len(detector.shared)] == detector.shared


def test_shared_stages_do_not_depend_on_the_seed(name):
    outputs = []
    for seed in (0, 1):
        detector, x = fitted(name, seed=seed), TEST
        for stage in detector.shared:
            x = detector.stages[stage](x)
        outputs.append(x)
    torch.testing.assert_close(*outputs, rtol=0, atol=0)


def test_training_pictures_score_lower_than_others(name):
    if name == "efficientad":
        pytest.skip("two steps: it has not learned the pictures, and noise of the same kind would be no anomaly")
    more = {"patchcore": {"bank": "100%"}, "spade": {"k": 1}, "simplenet": {"epochs": 4}}
    detector = fitted(name, **more.get(name, {}))
    others = 4 * TEST if isinstance(detector, Trained) else TEST
    assert detector.predict(torch.cat(TRAIN)).score.max() < detector.predict(others).score.min()


def test_a_patch_that_stands_out_is_where_the_map_is_highest(name):
    test = TEST.clone()
    test[1, :, 16:32, 40:56] += 8
    # The largest values at the rim go on to the picture's edge: the patches must be small enough to lie inside it.
    more = {"uninformed_students": {"patch_sizes": (17,)}}
    prediction = fitted(name, **more.get(name, {})).predict(test)
    row, column = divmod(int(prediction.full_map(64)[1].argmax()), 64)
    assert 14 <= row < 34
    assert 38 <= column < 58
    assert prediction.score.argmax() == 1


def test_save_and_load_give_equal_scores_bit_for_bit(name, tmp_path):
    detector = fitted(name, seed=3)
    file = detector.save(tmp_path / "detector.safetensors")
    loaded = METHODS[name].load(file)
    assert same(answers(loaded), answers(detector))
    assert loaded.parameters() == detector.parameters()
    assert loaded.backbone_.weights == detector.backbone_.weights


@pytest.fixture(scope="module")
def trained_on_bundled():
    return fitted("efficientad", weights="bundled"), fitted("uninformed_students", weights="bundled")


def test_a_compact_file_holds_what_was_trained_alone_in_half_the_bits(trained_on_bundled, tmp_path):
    for detector in trained_on_bundled:
        whole = detector.save(tmp_path / "whole.safetensors")
        compact = detector.save(tmp_path / "compact.safetensors", compact=True, card={"steps": 2})
        assert compact.stat().st_size < 0.6 * whole.stat().st_size
        with safetensors.safe_open(compact, "pt") as file:
            kinds = {key.partition(".")[0]: file.get_tensor(key).dtype for key in file.keys()}      # noqa: SIM118
            assert kinds == {"networks": torch.float16, "constants": torch.float32}
            assert json.loads(file.metadata()["card"]) == {"steps": 2}
        loaded = type(detector).load(compact)
        assert loaded.backbone_.weights == detector.backbone_.weights
        for a, b in zip(answers(loaded), answers(detector), strict=True):
            assert a.dtype == torch.float32
            torch.testing.assert_close(a, b, rtol=0, atol=0.02 * (b.max() - b.min()).item())


def test_a_compact_file_of_other_bundled_weights_is_refused(trained_on_bundled, tmp_path, monkeypatch):
    detector, _ = trained_on_bundled
    monkeypatch.setattr(detector.backbone_, "weights", {"source": "bundled", "sha256": "another"})
    file = detector.save(tmp_path / "compact.safetensors", compact=True)
    with pytest.raises(ThesisError, match=r"compact\.safetensors: belongs to .*another.*; fit and save it again"):
        type(detector).load(file)


@pytest.mark.parametrize("engine", ["fast", "int8"])
def test_engines_score_alike_and_are_saved(quantised, engine, tmp_path):
    """PatchCore keeps all rows: of features that differ a little another coreset would be drawn. SimpleNet hardly
    learns: a training makes much of little differences. Measured with and without VNNI: fast up to 5e-6, int8 0.07.
    """
    name = quantised
    rows = {"patchcore": {"bank": "100%"},
            "simplenet": {"adaptor_rate": 1e-6, "discriminator_rate": 1e-5}}.get(name, {})
    eager, other = fitted(name, **rows), fitted(name, engine=engine, **rows)
    for a, b in zip(answers(other), answers(eager), strict=True):
        unit = max(b.max(), b.max() - b.min()).item()
        torch.testing.assert_close(a, b, rtol=0, atol={"fast": 2e-5, "int8": 0.12}[engine] * unit)
    assert engine == "fast" or not same(answers(other), answers(eager)), "int8 is another network"
    loaded = METHODS[name].load(other.save(tmp_path / "detector.safetensors"))
    assert same(answers(loaded), answers(other)) and loaded.engine == engine
    singles = [other.predict(image[None]).score for image in TEST]
    torch.testing.assert_close(torch.cat(singles), answers(other)[0], atol=1e-4, rtol=1e-4)


def test_int8_takes_nominal_training_pictures_only(quantised, pad, small):
    with pytest.raises(ValueError, match="is a test picture; fit takes training"):
        make(quantised, engine="int8").fit(data.Pictures((*pad.train, pad.test[0]), small))


@pytest.mark.parametrize(("parameters", "message"), [
    ({"engine": "tpu"}, "engine='tpu': needs one of eager, fast, int8"), ({"calibration": 0}, "calibration=0")])
def test_wrong_engines_are_refused_at_once(quantised, parameters, message):
    with pytest.raises(ValueError, match=message):
        make(quantised, **parameters)


def test_a_detector_that_was_never_saved_cannot_be_loaded(name, tmp_path):
    files = {"missing": None, "text": b"hello", "empty": b""}
    for kind, content in files.items():
        file = tmp_path / f"{kind}.safetensors"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{kind}\.safetensors: not a readable detector file"):
            METHODS[name].load(file)


@pytest.mark.parametrize(("header", "told"), [
    (None, "method None in format None"), ({"format": "2", "method": "other"}, "method other in format 2"),
    ({"format": "99"}, "method {name} in format 99")])
def test_a_file_of_something_else_is_refused(name, tmp_path, header, told):
    file = tmp_path / "other.safetensors"
    header = {"method": name, **header} if header else None
    safetensors.torch.save_file({"bank": torch.zeros(2, 2)}, file, metadata=header)
    with pytest.raises(ThesisError) as caught:
        METHODS[name].load(file)
    holds = told.format(name=name)
    assert str(caught.value) == f"{file}: holds {holds}, needs {name} in format 2; fit and save it again"


def test_a_file_of_the_first_format_is_refused(name, tmp_path):
    """It did not say for which pictures its detector is."""
    file = fitted(name).save(tmp_path / "old.safetensors")
    with safetensors.safe_open(file, "pt") as opened:
        header = opened.metadata()
    del header["image_size"], header["preprocess"]
    safetensors.torch.save_file(safetensors.torch.load_file(file), file, metadata=header | {"format": "1"})
    with pytest.raises(ThesisError) as caught:
        METHODS[name].load(file)
    assert str(caught.value) == (f"{file}: holds method {name} in format 1, needs {name} in format 2; fit and save it "
                                 "again")


def test_pictures_of_another_size_are_refused(name, tmp_path):
    """By predict, by its first stage and by all stages together, fitted here or loaded."""
    detector = fitted(name)
    loaded = METHODS[name].load(detector.save(tmp_path / "detector.safetensors"))
    for one in (detector, loaded):
        for height, width in ((96, 64), (32, 32), (64, 128)):
            other = torch.zeros(1, 3, height, width)
            for call in (one.predict, next(iter(one.stages.values())), functools.partial(walked, one)):
                with pytest.raises(ThesisError, match=f"^images of {width}x{height} pixels: this {name} was fitted on "
                                                      "64x64; .*preprocess_") as caught:
                    call(other)
                assert "\n" not in str(caught.value)


def test_fit_takes_pictures_of_one_size(name):
    with pytest.raises(ThesisError, match=r"^images of 96x96 pixels after some of 64x64: fit needs one size$"):
        make(name).fit([images(4), torch.zeros(1, 3, 96, 96)])


def test_a_loaded_detector_prepares_pictures_and_scores_alone(name, pad, tmp_path):
    prepared = data.Preprocess(image_size=80, crop=64, interpolation="lanczos")
    detector = make(name).fit(data.Pictures(pad.train, prepared))
    file = detector.save(tmp_path / "detector.safetensors")
    expected = answers(detector, next(iter(data.Pictures(pad.test, prepared))))
    loaded = METHODS[name].load(file)
    assert loaded.preprocess_ == detector.preprocess_ == prepared.decided(pad.train)
    assert loaded.image_size_ == detector.image_size_ == (64, 64)
    assert same(answers(loaded, next(iter(data.Pictures(pad.test, loaded.preprocess_)))), expected)


def test_plain_batches_leave_their_size_and_no_preprocessing(name, pad, small, tmp_path):
    detector = make(name).fit(data.Pictures(pad.train, small))
    assert detector.preprocess_ == small.decided(pad.train)
    loaded = METHODS[name].load(detector.fit(TRAIN).save(tmp_path / "detector.safetensors"))
    assert detector.preprocess_ is loaded.preprocess_ is None
    assert loaded.image_size_ == detector.image_size_ == (64, 64)


def test_sides_may_differ_and_are_not_mixed_up(tmp_path):
    wide = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    loaded = PatchCore.load(make("patchcore").fit([wide]).save(tmp_path / "wide.safetensors"))
    assert loaded.image_size_ == (64, 96) and loaded.predict(wide).map.shape == (3, 16, 24)
    with pytest.raises(ThesisError, match="images of 64x96 pixels: this patchcore was fitted on 96x64"):
        loaded.predict(wide.mT)


def test_unfitted_raises(name, tmp_path):
    for call in (lambda: make(name).predict(TEST), lambda: make(name).stages,
                 lambda: make(name).save(tmp_path / "nothing")):
        with pytest.raises(NotFittedError, match="call fit first"):
            call()
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_no_parameter_is_without_effect(name, parameter, monkeypatch):
    """Another value changes scores or map; engines give the same answers, there another one must be asked. A seed
    changes nothing where the detector says so.
    """
    value, setting = OTHER[name][parameter]
    detectors = fitted(name, **setting), fitted(name, **{**setting, parameter: value})
    assert getattr(detectors[1], parameter) == value != getattr(detectors[0], parameter)
    results = [answers(detector) for detector in detectors]
    silent = parameter in ("search", "snapshots") or (parameter == "seed" and not detectors[0].seeded)
    if silent or parameter not in detectors[0].parameters(identity_only=True):
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    else:
        assert not same(*results)


@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_features_are_what_collect_depends_on(name, parameter):
    """Detectors of the same `collected_by` share what one of them collected: nothing else may change it."""
    value, setting = OTHER[name][parameter]
    detectors = make(name, **setting), make(name, **{**setting, parameter: value})
    one, other = (numbers(detector.collect(TRAIN)) for detector in detectors)
    shared = detectors[0].collected_by == detectors[1].collected_by
    assert (one.shape == other.shape and np.array_equal(one, other)) == shared
    assert make(name).collected_by == fitted(name).collected_by


@pytest.mark.parametrize("engine", search.ENGINES)
def test_patchcore_asks_the_engine_it_names(engine, monkeypatch):
    """Once for all pictures; pruned picture by picture."""
    asked, genuine = [], search.Search.query
    monkeypatch.setattr(search.Search, "query", lambda self, vectors, k=1: asked.append((type(self), self.threads))
                        or genuine(self, vectors, k))
    fitted("patchcore", search=engine, search_threads=1, coreset="random").predict(TEST)
    assert asked == [(search.ENGINES[engine], 1)] * (len(TEST) if engine == "pruned" else 1)


@pytest.mark.parametrize("score", ["max", "reweighted", "author_cdist"])
def test_patchcore_pruned_gives_the_same_scores_and_maps(monkeypatch, score):
    """With a bank larger than the rows that bound; the second picture is a training picture."""
    monkeypatch.setattr(search, "FIRST", 20)
    batch = torch.stack([TEST[0], TRAIN[0][0]])
    one, other = (fitted("patchcore", search=engine, bank="50%", score=score) for engine in ("torch", "pruned"))
    for got, expected in zip(answers(other, batch), answers(one, batch), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("score", ["max", "reweighted", "author_cdist"])
@pytest.mark.parametrize("engine", ["auto", "faiss", "cdist"])
def test_patchcore_scores_without_maps_are_the_same(monkeypatch, engine, score):
    """Of the stages for scores alone, which look at the whole bank for few patches."""
    monkeypatch.setattr(search, "FIRST", 20)
    batch = torch.stack([TEST[0], TRAIN[0][0]])
    detector = fitted("patchcore", search=engine, bank="50%", score=score)
    asked, genuine = [], search.Search.bounds
    monkeypatch.setattr(search.Search, "bounds", lambda self, vectors: asked.append(len(vectors))
                        or genuine(self, vectors))
    found = batch
    for stage in detector.score_stages.values():
        found = stage(found)
    assert len(asked) == (0 if score == "author_cdist" else len(batch))
    torch.testing.assert_close(found.score, detector.predict(batch).score, rtol=1e-5, atol=1e-5)


def test_patchcore_weights_are_used(tmp_path):
    """Layer 1 of another random network, from a file."""
    net = backbones.load("resnet18", (1,), "random", 9)
    state = {backbones._torchvision_key("resnet18", key): value.clone()
             for key, value in net.levels.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "nine.safetensors")
    detector = fitted("patchcore", weights=str(tmp_path / "nine.safetensors"))
    assert detector.backbone_.weights["source"] == "nine.safetensors"
    assert not same(answers(detector), answers(fitted("patchcore")))


@pytest.mark.parametrize(("limit", "refused"), [(0.001, True), (1.0, False)])
def test_patchcore_refuses_too_much_memory_before_the_work(make_category, small, limit, refused, counted):
    """24 pictures of 256 patches of 64 numbers are 1.6 MB; known after the first batch, the next is read meanwhile."""
    category = data.scan(make_category(train=24), "pad")
    Counted, read = counted
    detector = make("patchcore", memory_limit_gb=limit)
    if refused:
        with pytest.raises(MemoryLimitError, match=r"6144 patches of dimension 64 need 0.00 GB, the limit"):
            detector.fit(Counted(category.train, small, batch_size=2))
        assert len(read) <= 2
    else:
        detector.fit(Counted(category.train, small, batch_size=2))
        assert sum(read) == 24


def test_patchcore_bank_rows_are_patches_of_the_training_pictures():
    detector = make("patchcore")
    collected = detector.collect(TRAIN)
    detector.learn(collected)
    assert collected.shape == (6 * 16 * 16, 64)
    assert torch.equal(detector.bank_, torch.from_numpy(np.array(collected))[detector.rows_])
    assert len(set(detector.rows_)) == len(detector.bank_) == 20
    assert fitted("patchcore", bank="1%").bank_.shape == (15, 64)


def test_patchcore_score_is_the_farthest_patch_by_brute_force():
    detector = fitted("patchcore")
    patches = detector.stages["embedding"](detector.stages["extraction"](TEST))
    nearest = torch.cdist(patches.vectors.double(), detector.bank_.double()).amin(dim=2)
    score, heat = answers(detector)
    torch.testing.assert_close(score.double(), nearest.amax(dim=1), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(heat.double(), nearest.reshape(3, 16, 16), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("parameters", "message"), [
    ({"backbone": "resnet50"}, "backbone='resnet50'"), ({"layers": (5,)}, "layers=5"),
    ({"embedding": "avg"}, "embedding='avg'"), ({"join": "no"}, "join='no'"), ({"bank": 0}, "bank=0"),
    ({"bank": "x"}, "bank='x'"), ({"coreset": "best"}, "coreset='best'.*greedy, random"),
    ({"search": "annoy"}, "search='annoy'.*faiss, cdist, torch"), ({"distance": "l1"}, "distance='l1'.*l2"),
    ({"score": "mean"}, "score='mean'.*max, reweighted"),
    ({"score": "reweighted", "distance": "l2_squared"}, "score=reweighted: needs distance=l2"),
    ({"score": "reweighted", "neighbours": 1}, "neighbours=1"),
    ({"score": "author_cdist", "neighbours": 1}, "neighbours=1"),
    ({"projection": 0}, "projection=0"), ({"projection": -4}, "projection=-4"),
    ({"search_threads": 0}, "search_threads=0"), ({"search_threads": -1}, "search_threads=-1")])
def test_patchcore_refuses_wrong_values_at_once(parameters, message):
    with pytest.raises(ValueError, match=message):
        make("patchcore", **parameters)


@pytest.mark.parametrize(("parameters", "message"), [
    ({"bank": 10**6}, "bank=1000000: is 1000000 rows, needs 1 to 1536"),
    ({"score": "reweighted", "neighbours": 21}, "k=21 neighbours asked of a bank of 20 rows")])
def test_patchcore_refuses_more_than_there_is(parameters, message):
    with pytest.raises(ValueError, match=message):
        fitted("patchcore", **parameters).predict(TEST)


def test_patchcore_one_configuration_has_one_form():
    assert PatchCore(bank="1000", layers=[3, 2, 3]).parameters() == PatchCore(layers=(2, 3)).parameters()


def test_unknown_keyword_is_refused(name):
    with pytest.raises(TypeError, match="bankk"):
        METHODS[name](bankk=3)
    with pytest.raises(TypeError):
        METHODS[name]("resnet18")


def test_instances_share_nothing(name):
    one, other = fitted(name), make(name)
    assert one.state()
    with pytest.raises(NotFittedError):
        other.predict(TEST)


@pytest.mark.parametrize("call", [Detector.fit, Detector.collect], ids=["fit", "collect"])
@pytest.mark.parametrize("position", ["only", "last"])
def test_test_pictures_never_reach_fit(name, pad, small, call, position):
    samples = pad.test[3:4] if position == "only" else (*pad.train, pad.test[0])
    with pytest.raises(ValueError, match=f"{samples[-1].path}: is a test picture; fit takes training"):
        call(make(name), data.Pictures(samples, small))


def test_fit_takes_training_pictures(name, pad, small):
    assert make(name).fit(data.Pictures(pad.train, small)).predict(TEST).score.shape == (3,)


def test_fit_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match="no pictures"):
        make(name).fit([])


def test_evaluation_and_timing_take_it(name, pad, small):
    rows = scores.evaluate(make(name), pad, small, seeds=2)
    assert rows["seed"].tolist() == ([0, 1] if make(name).seeded else [0])
    images = torch.cat(list(data.Pictures(pad.test, small)))
    for seed, found, auroc in zip(rows["seed"], rows["scores"], rows["image_auroc"], strict=True):
        alone = make(name, seed=seed).fit(data.Pictures(pad.train, small)).predict(images).score
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)
        assert auroc == metrics.image_auroc(pad.labels, found)
    row = stage_times.measure_time(make(name), pad, small, pictures=1, warmup=0, repeats=1)
    expected = ["extraction", "score"] if name in ("efficientad", "uninformed_students") else list(STAGES)
    assert row["stages"] == list(row["stage_ms"]) == expected, "the names that tables and figures know"


def test_global_random_states_stay(name):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    fitted(name).predict(TEST)
    assert states() == before


@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_full_map_is_bilinear_then_a_gaussian(sigma):
    heat = torch.zeros(2, 8, 8)
    heat[0, 4, 4] = 1
    full = Prediction(torch.zeros(2), heat, sigma).full_map(64)
    assert full.shape == (2, 64, 64)
    assert full[1].abs().max() == 0, "the blur must not run over pictures"
    assert full[0].sum() == pytest.approx(64, rel=1e-3)
    assert (full[0].max() < 0.8) == (sigma > 0)
    assert {tuple(spot) for spot in (full[0] == full[0].max()).nonzero().tolist()} <= {
        (row, column) for row in (35, 36) for column in (35, 36)}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pictures_that_are_not_finite_have_no_score(name, value):
    detector, batch = fitted(name), TEST.clone()
    batch[1, 0, 9, 9] = value
    with pytest.raises(ValueError, match="images: number 1 of 3 holds NaN or infinity"):
        detector.predict(batch)
    with pytest.raises(ValueError, match="picture 1: its images hold NaN or infinity"):
        make(name).fit([batch])


def test_the_evaluation_names_the_picture_that_is_not_finite(name, make_category, monkeypatch, small):
    category = data.scan(make_category(train=6), "pad")
    genuine = data.Preprocess.array
    monkeypatch.setattr(data.Preprocess, "array", lambda self, path: genuine(self, path) * (
        np.nan if path.parent.name == "hole" and path.stem == "001" else 1))
    with pytest.raises(ValueError, match=r"hole.*001.png: its images hold NaN"):
        scores.evaluate(make(name), category, small, seeds=1)


def test_a_saved_detector_that_is_not_finite_is_refused(name, tmp_path):
    path = fitted(name).save(tmp_path / "saved.safetensors")
    with safetensors.safe_open(path, framework="pt") as file:
        header, state = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}     # noqa: SIM118
    key = next(key for key, values in state.items() if values.is_floating_point())
    state[key].view(-1)[0] = float("nan")
    safetensors.torch.save_file(state, path, metadata=header)
    with pytest.raises(ValueError, match=r"saved.safetensors: .*NaN or infinity; fit and save it again"):
        type(make(name)).load(path)

"""EfficientAD: its formulas against plain ones, the split, what the penalty is, and that nothing of the test leaks."""

import tempfile

import numpy as np
import pytest
import torch
from PIL import Image

from thesis_lib import data
from thesis_lib.core import paths
from thesis_lib.core.preprocess import DataError
from thesis_lib.data import Pictures, Preprocess
from thesis_lib.evaluation import scores
from thesis_lib.evaluation.configuration import Configuration
from thesis_lib.methods import EfficientAD
from thesis_lib.methods.efficientad import Outputs, TaughtPictures, augmented, halves, hard_loss
from thesis_lib.networks import autoencoder, engines
from thesis_lib.networks.pdn import PDN
from thesis_lib.networks.torch_setup import training_layout
from thesis_lib.training import distillation

pytestmark = pytest.mark.usefixtures("networks_built_once")
TINY = {"weights": "random", "steps": 2, "snapshots": 1, "penalty": "none"}


def images(count=4, seed=0):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("count", "quantile"), [(1000, 0.999), (1001, 0.999), (5000, 0.9), (7, 0.0), (24576, 0.999)])
def test_hard_loss_is_the_mean_above_a_plain_quantile(count, quantile):
    squared = torch.randn(1, count, generator=torch.Generator().manual_seed(count)).square()
    threshold = torch.quantile(squared, quantile)
    torch.testing.assert_close(hard_loss(squared, quantile), squared[squared >= threshold].mean())


def test_hard_loss_takes_a_thousandth_and_more_elements_than_torch_has_quantiles_for():
    squared = torch.zeros(2**24 + 1000)
    squared[:10] = 5.0
    taken = len(squared) - int(np.ceil(0.999 * (len(squared) - 1)))
    assert hard_loss(squared, 0.999).item() == pytest.approx(50 / taken)
    assert taken / len(squared) == pytest.approx(0.001, rel=1e-3), "0.1 %, not 10 % as the thesis says"


@pytest.mark.parametrize("side", [64, 128, 160, 256])
def test_autoencoder_ends_on_the_grid_of_the_networks_through_64_numbers(side):
    with torch.device("meta"):
        network, x = autoencoder.build(side, 384), torch.empty(1, 3, side, side)
        assert network(x).shape == PDN("pdn_small")(x).shape == (1, 384, side // 4 - 8, side // 4 - 8)
        assert network[:11](x).shape == (1, 64, 1, 1), "the bottleneck"


def test_autoencoder_of_the_paper_resizes_as_the_paper_does():
    sizes = [layer.size[0] for layer in autoencoder.build(256, 384) if isinstance(layer, torch.nn.Upsample)]
    assert sizes == [3, 8, 15, 32, 63, 127, 56]


@pytest.mark.parametrize("shape", [(1, 3, 72, 72), (1, 3, 64, 96), (1, 3, 32, 32)])
def test_sides_that_cannot_be_halved_are_refused(shape):
    with pytest.raises(ValueError, match=f"images of {shape[3]}x{shape[2]} pixels: the autoencoder needs squares"):
        autoencoder.check(torch.zeros(shape))


def test_augmentation_changes_one_thing_by_at_most_a_fifth():
    plain = data.normalise(torch.full((1, 3, 8, 8), 0.5))
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        seen.add(round(data.denormalise(augmented(plain)).mean().item(), 4))
    assert len(seen) > 5 and 0.399 < min(seen) < 0.47 and 0.53 < max(seen) < 0.601     # grey: only brightness shows


def test_split_and_statistics_and_quantiles():
    """Held-out pictures set the quantiles, the others train; the constants by plain NumPy."""
    detector = EfficientAD(**TINY, held_out=0.3)
    collected = detector.collect(list(images(10).split(4)))
    assert isinstance(collected, TaughtPictures) and collected.described.shape == (10, 384, 8, 8)
    trained, held = detector.split(10)
    assert sorted(trained + held) == list(range(10)) and len(held) == 3
    assert detector.reseeded(1).split(10) != (trained, held)
    assert [len(part) for part in EfficientAD(held_out=0.99).split(4)] == [1, 3]
    detector.learn(collected)
    described = collected.described[trained].transpose(1, 0, 2, 3).reshape(384, -1).astype(np.float64)
    np.testing.assert_allclose(detector.constants_["mean"].ravel(), described.mean(1), atol=1e-5)
    np.testing.assert_allclose(detector.constants_["std"].ravel(), described.std(1), rtol=1e-3)
    outputs = detector.stages["extraction"](torch.from_numpy(np.array(collected.images[held])))
    student, other = outputs.student[:, :384], outputs.student[:, 384:]
    for (low, high), heat in zip(detector.constants_["quantiles"], (
            (student - outputs.teacher).square().mean(1), (other - outputs.autoencoder).square().mean(1)), strict=True):
        np.testing.assert_allclose([low, high], np.quantile(heat.numpy(), [0.9, 0.995]), rtol=1e-3)
    maps = detector.maps(outputs)
    assert np.quantile(maps["local"], 0.9) == pytest.approx(0, abs=1e-4)
    assert np.quantile(maps["global"], 0.995) == pytest.approx(0.1, abs=1e-4)
    torch.testing.assert_close(maps["combined"], (maps["local"] + maps["global"]) / 2)


def test_held_out_pictures_do_not_train(monkeypatch):
    """The weights do not depend on them, the quantiles do."""
    batch = images(10)
    detector = EfficientAD(**TINY, held_out=0.3)
    _, held = detector.split(10)
    other = batch.clone()
    other[held] += 1
    one, two = (EfficientAD(**TINY, held_out=0.3).fit([pictures]) for pictures in (batch, other))
    weights = one.networks_.state_dict(), two.networks_.state_dict()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(one.constants_["quantiles"], two.constants_["quantiles"])


def test_a_random_teacher_and_its_student_do_not_begin_alike():
    """Both are PDNs, and the seed of either is 0."""
    detector = EfficientAD(**TINY | {"steps": 1}, rate=0.0).fit([images()])
    teacher, student = detector.backbone_.levels["1"].conv1.weight, detector.networks_["student"].conv1.weight
    assert teacher.shape == student.shape and not torch.isclose(teacher, student).float().mean() > 0.01


def test_score_is_the_maximum_and_the_rim_has_the_nearest_values():
    detector = EfficientAD(**TINY).fit([images()])
    outputs = detector.stages["extraction"](images(2, 1))
    assert isinstance(outputs, Outputs)
    prediction, combined = detector.stages["score"](outputs), detector.maps(outputs)["combined"]
    assert prediction.map.shape == (2, 16, 16), "64 pixels in steps of 4"
    nearest = np.clip(np.arange(16) - 4, 0, 7)
    assert np.array_equal(prediction.map, combined.numpy()[:, nearest][..., nearest])
    assert torch.equal(prediction.score, combined.flatten(1).amax(1))
    with pytest.raises(ValueError, match="images of 96x96 pixels: this efficientad was fitted on 64x64"):
        detector.predict(torch.zeros(1, 3, 96, 96))


def test_halves_are_those_of_the_whole_student():
    """S of every picture but the last one, S' of that; and their gradients, for a student of both halves."""
    torch.manual_seed(0)
    student, shown = PDN("pdn_small", 768), images(3)
    whole = student(shown)
    parts = halves(student, shown)
    for part, expected in zip(parts, (whole[:-1, :384], whole[-1:, 384:]), strict=True):
        torch.testing.assert_close(part, expected)
    found, expected = (torch.autograd.grad(sum(part.square().mean() for part in several), list(student.parameters()))
                       for several in (parts, (whole[:-1, :384], whole[-1:, 384:])))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_losses_fall_and_all_parts_are_there():
    detector = EfficientAD(weights="random", steps=20, snapshots=1, penalty="procedural", rate=1e-3).fit([images()])
    losses = detector.course_.losses
    assert set(losses) == {"hard", "autoencoder", "student_autoencoder", "penalty"}
    assert np.mean(losses["hard"][-5:]) < 0.9 * np.mean(losses["hard"][:5])
    assert "penalty" not in EfficientAD(**TINY).fit([images()]).course_.losses


@pytest.mark.parametrize(("units", "last"), [("AVX2", False), ("AVX512", True), ("DEFAULT", True), ("SVE256", True)])
def test_layout_of_a_training_is_decided_by_the_units_of_the_processor(monkeypatch, units, last):
    """Both layouts learn the same up to rounding and the dropout, which has no part in the first L_hard."""
    here = EfficientAD(**TINY).fit([images()])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: units)
    detector = EfficientAD(**TINY, resume=False).fit([images()])
    weights = detector.networks_["student"].conv2.weight
    assert weights.is_contiguous(memory_format=torch.channels_last) == last and weights.is_contiguous() != last
    assert detector.course_.losses["hard"][0] == pytest.approx(here.course_.losses["hard"][0], rel=1e-4)
    again = EfficientAD(**TINY, resume=False).fit([images()])
    assert detector.course_.losses == again.course_.losses, "the clock has no part in it"


def test_layout_on_a_graphics_card_does_not_ask_the_processor(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert training_layout("cuda") is torch.channels_last
    assert training_layout("cpu") is torch.contiguous_format


def test_a_folder_of_penalties_counts_by_its_pictures(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "photos").mkdir(parents=True)
        Image.new("RGB", (80, 80), (9, 8, 7)).save(tmp_path / name / "photos" / "1.png")
    one, other = (EfficientAD(**TINY | {"penalty": str(tmp_path / name / "photos")}) for name in ("a", "b"))
    assert Configuration.of(one, Preprocess()) == Configuration.of(other, Preprocess())
    assert one.parameters(identity_only=True)["penalty"].startswith("photos ")
    assert str(tmp_path) not in str(Configuration.of(one, Preprocess()))
    Image.new("RGB", (80, 80)).save(tmp_path / "b" / "photos" / "2.png")
    another = EfficientAD(**TINY | {"penalty": str(tmp_path / "b" / "photos")})
    assert Configuration.of(another, Preprocess()) != Configuration.of(one, Preprocess())
    assert set(one.fit([images()]).course_.losses) >= {"penalty"}


def test_the_penalty_is_the_centre_quarter_of_a_photograph_unmirrored(tmp_path, monkeypatch):
    """Of any shape, pressed into a square of 2 x 64 pixels; always the same part, with its left on the left."""
    columns = np.tile(np.linspace(0, 255, 256).astype(np.uint8), (128, 1))
    Image.fromarray(columns).convert("RGB").save(tmp_path / "ramp.png")
    genuine, seen = distillation.greyed, []
    monkeypatch.setattr(distillation, "greyed", lambda shown, share: seen.append(shown) or genuine(shown, share))
    EfficientAD(**TINY | {"penalty": str(tmp_path)}).fit([images()])
    expected = np.linspace(64, 191, 64)             # the middle half of the columns
    assert len(seen) == 2
    for shown in seen:
        found = 255 * data.denormalise(shown).numpy()
        assert shown.shape == (1, 3, 64, 64) and np.abs(found - expected).max() < 2


def test_a_penalty_that_is_not_there_is_refused_before_the_work(pad, small):
    with pytest.raises(DataError, match="imagenet: is no source of pictures"):
        scores.evaluate(EfficientAD(**TINY | {"penalty": "imagenet"}), pad, small)


def test_rows_say_the_penalty_and_keep_the_states_on_the_way(pad, small):
    row = scores.evaluate(EfficientAD(**TINY | {"snapshots": 2}), pad, small, seeds=1).iloc[0]
    assert row["parameters.penalty"] == "none" and row["training.steps"] == [1, 2]
    assert row["image_auroc"] == row["training.image_auroc"][-1]
    assert set(EfficientAD(**TINY).fit(Pictures(pad.train, small)).stages) == {"extraction", "score"}


@pytest.fixture(scope="module")
def by_engine():
    """Fitted on the same pictures on every engine, all 8 of the training set the ranges; the checkpoints they left."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("THESIS_OUTPUTS", folder)
        genuine, steps = EfficientAD.losses, []
        patch.setattr(EfficientAD, "losses", lambda *given: steps.append(given[-1]) or genuine(*given))
        found = {engine: EfficientAD(**TINY | {"snapshots": 2}, engine=engine, held_out=0.2).fit([images(10)])
                 for engine in engines.ENGINES}
        return found, steps, len(list(paths.checkpoints().iterdir()))


def test_engines_share_one_training(by_engine):
    """And a training that is under way goes on: the checkpoint of an eager one has the name that it always had."""
    found, steps, checkpoints = by_engine
    assert steps == [0, 1] and checkpoints == 1
    assert found["eager"].recipe()["engine"] == "eager" and "calibration" not in found["eager"].recipe()
    ids = {Configuration.of(detector, Preprocess()).id for detector in found.values()}
    assert len(ids) == 3
    states = [detector.networks_.state_dict() for detector in found.values()]
    assert all(torch.equal(states[0][key], other[key]) for other in states[1:] for key in states[0])


def test_fast_equals_eager_and_int8_is_another_network(by_engine):
    eager, fast, int8 = by_engine[0].values()
    for step in (1, 2):                 # the states on the way, too
        one, two, three = (detector.at(step).predict(images(3, 1)) for detector in (eager, fast, int8))
        torch.testing.assert_close(two.score, one.score, rtol=1e-4, atol=0)
        torch.testing.assert_close(two.map, one.map, rtol=1e-4, atol=1e-4 * one.map.abs().max().item())
        assert 1e-3 < (three.score / one.score - 1).abs().max() < 0.3
    assert len(int8.graph_.model) < 0.3 * len(fast.graph_.model)


def test_quantiles_of_int8_are_those_of_its_own_maps_of_pictures_held_out(by_engine):
    _, fast, int8 = by_engine[0].values()
    _, held = int8.split(10)
    for detector in (fast, int8):
        outputs = Outputs(*detector.graph_(images(10)[held]))
        student, other = outputs.student[:, :384], outputs.student[:, 384:]
        for pair, heat in zip(detector.constants_["quantiles"], (
                (student - outputs.teacher).square().mean(1), (other - outputs.autoencoder).square().mean(1)),
                strict=True):
            np.testing.assert_allclose(pair, np.quantile(heat.numpy(), [0.9, 0.995]), rtol=1e-4)
    assert not torch.equal(fast.constants_["quantiles"], int8.constants_["quantiles"])


@pytest.mark.parametrize(("calibration", "numbers"), [(100, 8), (3, 3)])
def test_ranges_come_from_pictures_that_were_trained_on(by_engine, monkeypatch, calibration, numbers):
    detector, seen = by_engine[0]["eager"], []
    collected = detector.collect([images(10)])
    trained = [image.tobytes() for image in collected.images[sorted(detector.split(10)[0])]]

    def qdq(model, batches, reduce_range):
        seen.extend(batch.numpy().tobytes() for batch in batches)
        return model

    monkeypatch.setattr(engines.quantize, "qdq", qdq)
    monkeypatch.setattr(detector, "calibration", calibration)
    detector.on("int8", collected.images)
    assert len(seen) == numbers and set(seen) <= set(trained)


@pytest.mark.parametrize(("options", "message"), [
    ({"backbone": "resnet18"}, "backbone='resnet18': needs one of pdn_small, pdn_medium"), ({"steps": 0}, "steps=0"),
    ({"held_out": 1.0}, "held_out=1.0"),
    ({"hard": -1.0}, "hard=-1.0"), ({"low": 0.99, "high": 0.9}, "low=0.99, high=0.9"), ({"rate": -1.0}, "rate=-1.0")])
def test_wrong_values_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        EfficientAD(**options)


def test_one_picture_is_too_few():
    with pytest.raises(ValueError, match="1 training picture: one is held out"):
        EfficientAD(**TINY).fit([images(1)])

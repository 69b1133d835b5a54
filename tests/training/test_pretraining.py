"""The pictures made by formula, and a shortened run of the training on them."""

import dataclasses
import hashlib
import inspect
import json

import pytest
import torch
from safetensors import safe_open

from pretraining import stream, training
from pretraining.__main__ import main
from pretraining.stream import Stream
from pretraining.training import Recipe, train
from thesis_lib.networks import backbones
from thesis_lib.training import formulas, procedural, sources
from thesis_lib.training.descent import TrainingError
from thesis_lib.training.formulas import FAMILIES, NUMBERS, Canvas

TINY = Recipe(steps=6, classes=24, side=32, batch=6)
TINY_OPTIONS = [f"--{name}={getattr(TINY, name)}" for name in ("steps", "classes", "side", "batch")]


def canvas(side=64, count=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Canvas(torch.rand(count, NUMBERS, generator=generator), side, generator)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_a_family_draws_pictures_and_no_nonsense(family):
    for seed in range(4):
        board = canvas(seed=seed)
        field = family(board)
        assert field.shape == (5, 64, 64) and field.isfinite().all()
        assert field.min() >= 0 and field.max() <= 1
        assert (field.std((1, 2)) > 0.01).float().mean() >= 0.8, "nearly all pictures show something"
        assert board.taken <= NUMBERS - 16, "the last 16 numbers of a class belong to its paint"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_pictures_of_one_class_differ_and_classes_differ(family):
    """Texture statistics of one class lie closer together than those of all classes."""
    generator = torch.Generator().manual_seed(1)
    numbers = torch.rand(20, NUMBERS, generator=generator).repeat_interleave(6, 0)
    field = family(Canvas(numbers, 64, generator)).unflatten(0, (20, 6))
    assert not torch.equal(field[0, 0], field[0, 1])
    steps = [(field[..., k:] - field[..., :-k]).abs().mean((2, 3)) for k in (1, 2, 4)]
    statistics = torch.stack([field.mean((2, 3)), field.std((2, 3)), *steps], -1)        # (20, 6, 5)
    within, between = statistics.var(1).mean(0), statistics.mean(1).var(0)
    assert (between > within).sum() >= 3


def test_pick_takes_by_picture():
    index = torch.tensor([0, 2, 1])[:, None, None]
    fields = [torch.full((3, 2, 2), float(value)) for value in (10, 20, 30)]
    assert formulas.pick(index, *fields)[:, 0, 0].tolist() == [10, 30, 20]


def test_a_batch_is_a_function_of_seed_and_number():
    one, again, other = (Stream(24, 32, 4, seed)[index] for seed, index in ((0, 3), (0, 3), (0, 4)))
    for name in ("images", "mask", "first", "second", "warp"):
        assert torch.equal(getattr(one, name), getattr(again, name)), name
    assert not torch.equal(one.images, other.images)
    assert not torch.equal(one.images, Stream(24, 32, 4, 1)[3].images)


@pytest.fixture
def no_camera(monkeypatch):
    """Views that differ by their warp alone, in plain values of 0 to 1."""
    monkeypatch.setattr(stream, "photograph", lambda images, camera, generator: images)
    monkeypatch.setattr(stream, "IMAGENET_MEAN", (0, 0, 0))
    monkeypatch.setattr(stream, "IMAGENET_STD", (1, 1, 1))


def test_a_mosaic_shows_first_where_the_mask_is_one(no_camera):
    """With one colour per class, a picture says which class shows where; first views are plain crops."""
    pictures = Stream(24, 32, 24, 0)
    pictures.render = lambda labels, side, generator: labels[:, None, None, None].expand(-1, 3, side, side) / 24
    batch = pictures[0]
    shown = torch.lerp(batch.second[:, None, None, None].float(), batch.first[:, None, None, None].float(), batch.mask)
    assert torch.allclose(batch.images, (shown / 24).expand_as(batch.images), atol=1e-5)
    assert 0.3 < batch.mask.mean() < 0.9 and set(batch.mask[:12].unique().tolist()) == {0.0, 1.0}
    whole = pictures.batch_of(0, mosaics=False)
    assert whole.mask.min() > 0.999 and torch.equal(whole.first, batch.first)


def test_warp_takes_the_second_view_to_the_first(no_camera):
    """Where the first view shows a place of the second, both show the same."""
    batch = Stream(24, 64, 8, 0).batch_of(1, mosaics=False)
    one, two = batch.images.chunk(2)
    smooth = torch.nn.functional.avg_pool2d
    grid = torch.nn.functional.affine_grid(batch.warp, list(one.shape), align_corners=False)
    inside = (grid.abs().amax(-1) < 0.9)[:, None].expand_as(one)
    found = torch.nn.functional.grid_sample(one, grid, align_corners=False)
    apart = {name: (smooth(x, 3, 1, 1) - smooth(two, 3, 1, 1))[inside].abs().mean() for name, x in
             (("warped", found), ("not warped", one))}
    assert apart["warped"] < 0.1 * apart["not warped"], apart
    assert torch.equal(batch.first[:4], batch.first[4:])


def test_views_of_a_scene_differ_less_than_scenes():
    one, two = Stream(24, 32, 32, 0)[0].images.mean((2, 3)).chunk(2)
    assert (one - two).abs().mean() < 0.3 * (one - two.roll(1, 0)).abs().mean()


def test_naming_is_cross_entropy_where_a_picture_is_whole():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 24, 2, 2, generator=generator)
    batch = dataclasses.replace(Stream(24, 32, 4, 0)[0], mask=torch.ones(4, 1, 32, 32))
    expected = torch.nn.functional.cross_entropy(logits, batch.first[:, None, None].expand(-1, 2, 2))
    assert torch.isclose(training.naming_loss(logits, batch), expected)


def test_naming_weighs_the_two_pictures_of_a_mosaic_by_area():
    mask = torch.zeros(2, 1, 32, 32)
    mask[..., :8] = 1                       # a quarter of the picture
    batch = dataclasses.replace(Stream(24, 32, 2, 0)[0], mask=mask, second=torch.tensor([3, 4]))
    logits = torch.randn(2, 24, 1, 1, generator=torch.Generator().manual_seed(0))
    first, second = (torch.nn.functional.cross_entropy(logits[:, :, 0, 0], labels)
                     for labels in (batch.first, batch.second))
    assert torch.isclose(training.naming_loss(logits, batch), 0.25 * first + 0.75 * second)


def test_finding_equals_a_plain_loop():
    """Views that do not differ: 2 scenes, the inner 2 x 2 of 4 x 4 places (those on the rim are left out)."""
    generator = torch.Generator().manual_seed(0)
    still = torch.eye(2, 3)[None].repeat(2, 1, 1)
    batch = dataclasses.replace(Stream(24, 32, 4, 0)[0], warp=still)
    one, two = torch.randn(2, 2, 5, 4, 4, generator=generator)
    places = [(n, y, x) for n in range(2) for y in (1, 2) for x in (1, 2)]

    def unit(views, n, y, x):
        return views[n, :, y, x] / views[n, :, y, x].norm()
    expected = 0
    for place in places:
        for here, there in ((one, two), (two, one)):
            likeness = torch.stack([unit(here, *place) @ unit(there, *other) / 0.1 for other in places])
            expected += (likeness.logsumexp(0) - likeness[places.index(place)]) / (2 * len(places))
    found = training.finding_loss(torch.cat([one, two]), batch, 1000, generator)
    assert torch.isclose(found, expected, rtol=1e-4)
    assert training.finding_loss(torch.cat([one, one]), batch, 1000, generator) < found


def test_shortened_training_makes_a_file_the_library_loads(tmp_path, capsys):
    out = tmp_path / "new" / "weights.safetensors"
    assert main([str(out), *TINY_OPTIONS, "--threads=1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["card"]) == printed
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}     # noqa: SIM118
    assert printed["pictures"] == 36 and printed["recipe"]["classes"] == 24
    assert set(printed["accuracy"]) == {"2", "3", "4"}
    backbone = backbones.load("resnet18", (1, 2, 3, 4), str(out))
    features = backbone(torch.zeros(1, 3, 64, 64))
    assert all(feature.isfinite().all() for feature in features.values())
    assert [path.name for path in out.parent.iterdir()] == [out.name], "no checkpoint is left"


@pytest.mark.slow
def test_training_learns(tmp_path):
    """Two dozen classes, two hundred small batches: unseen pictures are named clearly better than by chance, 1/24."""
    card = train(Recipe(steps=200, classes=24, side=32, batch=16), tmp_path / "w.safetensors")
    assert sum(card["accuracy"].values()) / 3 > 1.8 / 24, card      # 0.109 was measured


@pytest.mark.parametrize(("index", "labels"), [
    (0, [37, 491, 396, 584, 511, 649, 203, 389]), (1, [168, 15, 749, 72, 278, 555, 210, 331]),
    (7499, [202, 156, 552, 118, 684, 284, 590, 692]), (training.UNSEEN, [428, 273, 351, 518, 538, 164, 274, 338])])
def test_the_bundled_network_saw_these_pictures(index, labels):
    """With other streams the command in its card would make another file: recorded when all streams were `mixed`."""
    recipe = Recipe()
    pictures = Stream(recipe.classes, recipe.side, recipe.batch, recipe.seed)
    assert hashlib.sha256(pictures.numbers.numpy().tobytes()).hexdigest()[:16] == "613f2c33bba35c52"
    assert pictures[index].first[:8].tolist() == labels


def test_first_steps_are_those_that_they_always_were(tmp_path):
    """First weights, pictures and places found again: each moves these losses. Recorded as the labels above.

    Two steps: from the third on, the roundings of one processor have grown to a hundredth of another's loss.
    """
    train(dataclasses.replace(TINY, precision="float32"), tmp_path / "w.safetensors", limit=2)
    found = torch.load(tmp_path / "w.checkpoint", weights_only=True)["course"]["losses"]
    expected = {"naming 2": [3.29641, 3.17336], "naming 3": [3.13396, 3.20977], "naming 4": [3.63749, 3.29320],
                "finding 1": [0.81495, 0.87766], "finding 2": [0.59795, 0.56891], "finding 3": [0.16489, 0.27138]}
    assert {name: pytest.approx(values, rel=1e-3, abs=1e-4) for name, values in expected.items()} == found


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path):
    torch.set_num_threads(1)
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train(TINY, whole)
    assert train(TINY, parts, limit=3) is None and not parts.exists()
    train(TINY, parts)
    with safe_open(whole, "pt") as one, safe_open(parts, "pt") as two:
        assert all(torch.equal(one.get_tensor(key), two.get_tensor(key)) for key in one.keys())   # noqa: SIM118


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, capsys):
    out = tmp_path / "w.safetensors"
    train(TINY, out, limit=1)
    assert main([str(out), *TINY_OPTIONS, "--threads=1", "--seed=5"]) == 2
    assert "another recipe than seed=5" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "message"), [
    (["--threads=-1"], "threads=-1"), (["--torch-device=abacus"], "torch_device=abacus"),
    (["--steps=1"], "steps=1"), (["--side=16"], "side=16"), (["--classes=25"], "multiple of 12"),
    (["--batch=7"], "batch=7"), (["--precision=half"], "precision=half"), (["--rate=1e30"], "not finite")])
def test_wrong_options_are_named(tmp_path, capsys, options, message):
    assert main([str(tmp_path / "w.safetensors"), *TINY_OPTIONS, *options]) == 2
    assert message in capsys.readouterr().err


def test_the_file_must_be_safetensors(tmp_path):
    with pytest.raises(TrainingError, match="safetensors"):
        train(TINY, tmp_path / "w.pt")


def test_the_demo_set_stays_unseen():
    """No picture of the stream comes from the generator of the demo set."""
    for module in (formulas, procedural, sources, training, inspect.getmodule(Stream)):
        assert "synthetic" not in inspect.getsource(module)

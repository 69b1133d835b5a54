"""The pictures made by formula, and a shortened run of the training on them."""

import inspect
import json

import pytest
import torch
from safetensors import safe_open

from pretraining import formulas, training
from pretraining.__main__ import main
from pretraining.formulas import FAMILIES, NUMBERS, Canvas
from pretraining.stream import Stream
from pretraining.training import Recipe, RecipeError, train
from thesis_lib import backbones

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
    assert torch.equal(one.images, again.images) and torch.equal(one.mask, again.mask)
    assert torch.equal(one.first, again.first) and torch.equal(one.second, again.second)
    assert not torch.equal(one.images, other.images)
    assert not torch.equal(one.images, Stream(24, 32, 4, 1)[3].images)


def test_a_mosaic_shows_first_where_the_mask_is_one():
    """Without camera and with one colour per class, the picture says which class shows where."""
    stream = Stream(24, 32, 24, 0)
    stream.render = lambda labels, generator: labels[:, None, None, None].expand(-1, 3, 32, 32) / 24
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretraining.stream._photograph", lambda images, generator: images)
        batch = stream[0]
    shown = torch.where(batch.mask > 0.5, batch.first[:, None, None, None], batch.second[:, None, None, None])
    assert torch.allclose(batch.images, (shown / 24).expand_as(batch.images), atol=1e-5)
    assert 0.3 < batch.mask.mean() < 0.9 and set(batch.mask.unique().tolist()) == {0.0, 1.0}
    whole = stream.batch_of(0, mosaics=False)
    assert whole.mask.min() == 1 and torch.equal(whole.first, batch.first)


def test_the_loss_is_cross_entropy_where_a_picture_is_whole():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 24, 2, 2, generator=generator)
    batch = Stream(24, 32, 4, 0).batch_of(0, mosaics=False)
    expected = torch.nn.functional.cross_entropy(logits, batch.first[:, None, None].expand(-1, 2, 2))
    assert torch.isclose(training.losses({"3": logits}, batch)["3"], expected)


def test_the_loss_weighs_the_two_pictures_of_a_mosaic_by_area():
    batch = Stream(24, 32, 2, 0)[0]
    batch.mask[:] = 0
    batch.mask[..., :8] = 1                 # a quarter of the picture
    logits = torch.randn(2, 24, 1, 1, generator=torch.Generator().manual_seed(0))
    first, second = (torch.nn.functional.cross_entropy(logits[:, :, 0, 0], labels)
                     for labels in (batch.first, batch.second))
    assert torch.isclose(training.losses({"4": logits}, batch)["4"], 0.25 * first + 0.75 * second)


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
    """Two dozen classes, two hundred small batches: more than twice as good as chance on unseen pictures."""
    card = train(Recipe(steps=200, classes=24, side=32, batch=16), tmp_path / "w.safetensors")
    assert min(card["accuracy"].values()) > 2.2 / 24, card


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    train(TINY, whole, threads=1)
    assert train(TINY, parts, threads=1, limit=3) is None and not parts.exists()
    train(TINY, parts, threads=1)
    with safe_open(whole, "pt") as one, safe_open(parts, "pt") as two:
        assert all(torch.equal(one.get_tensor(key), two.get_tensor(key)) for key in one.keys())   # noqa: SIM118


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, capsys):
    out = tmp_path / "w.safetensors"
    train(TINY, out, threads=1, limit=1)
    assert main([str(out), *TINY_OPTIONS, "--threads=1", "--seed=5"]) == 2
    assert "another recipe than seed=5" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "message"), [
    (["--every=0"], "every=0"), (["--threads=-1"], "threads=-1"), (["--device=abacus"], "device=abacus"),
    (["--steps=1"], "steps=1"), (["--side=16"], "side=16"), (["--classes=25"], "multiple of 12")])
def test_wrong_options_are_named(tmp_path, capsys, options, message):
    assert main([str(tmp_path / "w.safetensors"), *TINY_OPTIONS, *options]) == 2
    assert message in capsys.readouterr().err


def test_the_file_must_be_safetensors(tmp_path):
    with pytest.raises(RecipeError, match="safetensors"):
        train(TINY, tmp_path / "w.pt")


def test_the_demo_set_stays_unseen():
    """No picture of the stream comes from the generator of the demo set."""
    for module in (formulas, training, inspect.getmodule(Stream)):
        assert "synthetic" not in inspect.getsource(module)

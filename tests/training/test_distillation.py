"""Distillation: pictures as a function of their number, the target, and a shortened run through the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from pretraining.pdn import main
from thesis_lib import data
from thesis_lib.core.preprocess import DataError
from thesis_lib.networks import backbones
from thesis_lib.networks.pdn import PDN
from thesis_lib.patches.embedding import Original
from thesis_lib.training import distillation, sources
from thesis_lib.training.descent import TrainingError
from thesis_lib.training.distillation import PatchTarget, Recipe, pdn

TINY = ["--steps=4", "--side=64", "--batch=2", "--sample=2", "--precision=float32", "--threads=1"]


@pytest.fixture
def photographs(tmp_path):
    """Five pictures of different sides, one of them grey, one in a folder below."""
    root = tmp_path / "photographs"
    (root / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(5):
        shape = (70 + number, 90, 3) if number else (70, 90)
        name = root / ("more" if number == 4 else ".") / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(name)
    return root


@pytest.mark.parametrize("kind", ["folder", "procedural"])
def test_a_picture_is_a_function_of_seed_and_number(kind, photographs):
    def source(seed=0):
        return sources.parse(str(photographs) if kind == "folder" else kind, 64, 3, seed)

    before = torch.get_rng_state()
    first, again = source()[5], source()[5]
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == (3, 3, 64, 64) and first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, source()[6]) and not torch.equal(first, source(1)[5])
    plain = data.denormalise(first)
    assert plain.min() > -0.01 and plain.max() < 1.01 and plain.std() > 0.02


@pytest.mark.parametrize("kind", ["procedural", "folder"])
def test_pictures_do_not_depend_on_the_precision_of_the_training(kind, photographs):
    source = sources.parse("procedural" if kind == "procedural" else str(photographs), 64, 16)
    with torch.autocast("cpu", torch.bfloat16):
        asked = source[3]
    torch.testing.assert_close(asked, source[3], rtol=0, atol=0)


def test_a_folder_is_known_by_its_pictures(photographs, tmp_path):
    before = sources.Folder(photographs, 64, 1).identity
    (tmp_path / "elsewhere").mkdir()
    moved = photographs.rename(tmp_path / "elsewhere" / "photographs")
    assert sources.Folder(moved, 64, 1).identity == before and before.startswith("photographs ")
    Image.new("RGB", (80, 80)).save(moved / "new.png")
    assert sources.Folder(moved, 64, 1).identity != before


@pytest.mark.parametrize("name", ["imagenet", "empty"])
def test_a_source_that_is_none_is_named(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"{name}: (is no source|holds no pictures)"):
        sources.parse(name if name == "imagenet" else str(tmp_path / "empty"), 64, 1)


def test_grey_is_grey_and_the_rest_stays():
    torch.manual_seed(0)
    images = data.normalise(torch.rand(200, 3, 4, 4))
    changed = distillation.greyed(images, 0.3)
    plain = data.denormalise(changed)
    grey = (plain - plain[:, :1]).abs().amax((1, 2, 3)) < 1e-5
    assert 30 < grey.sum() < 90
    assert torch.equal(changed[~grey], images[~grey])


def test_the_target_is_the_patch_embedding_of_twice_the_picture():
    """One vector for every 4 x 4 pixels, standardised over other pictures."""
    backbone = backbones.load("resnet18", (2, 3), "random")
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    doubled = torch.nn.functional.interpolate(images, scale_factor=2, mode="bilinear")
    plain = Original(384, 1024)(backbone(doubled)).vectors
    target = PatchTarget(backbone)
    assert target(images).shape == (3, 384, 16, 16)
    torch.testing.assert_close(target(images).flatten(2).mT, plain)
    target.standardise(images.split(1))
    told = target(images)
    torch.testing.assert_close(told.mean((0, 2, 3)), torch.zeros(384), atol=1e-4, rtol=0)
    torch.testing.assert_close(told.std((0, 2, 3), correction=0), torch.ones(384), atol=1e-3, rtol=0)


class Drawn(torch.nn.Module):
    """Levels drawn by the number that a picture is filled with, instead of a network."""

    def forward(self, images):
        rng = np.random.RandomState(1000 + round(images[0, 0, 0, 0].item()))
        return {2: torch.from_numpy(rng.random_sample((1, 512, 64, 64))).float(),
                3: torch.from_numpy(rng.random_sample((1, 1024, 32, 32))).float()}


def test_the_target_gives_the_numbers_of_the_reference():
    """nelson1425/EfficientAD@fcab514: pictures 0 to 3 set mean and deviation, picture 4 is told."""
    target, pictures = PatchTarget(Drawn()), [torch.full((1, 3, 8, 8), float(number)) for number in range(5)]
    rows, columns = zip((0, 0), (0, 31), (1, 1), (20, 45), (31, 32), (63, 63), strict=True)

    def told():
        return target(pictures[4])[0][:, rows, columns][[0, 100, 191, 192, 300, 383]].T
    np.testing.assert_allclose(told(), [
        [0.284194818, 0.22973199, 0.25777623, 0.258405785, 0.213148714, 0.250397193],
        [0.431189007, 0.349596896, 0.316770571, 0.320788322, 0.365775065, 0.316373076],
        [0.568179913, 0.526697971, 0.571297251, 0.315375181, 0.264217305, 0.311626976],
        [0.447741973, 0.478419107, 0.506961638, 0.549887378, 0.526841328, 0.496960219],
        [0.562589655, 0.437458237, 0.489889676, 0.509834803, 0.459836394, 0.529641006],
        [0.237547358, 0.268180547, 0.219373505, 0.262068586, 0.223418565, 0.198878198]], atol=1e-6)
    target.standardise(pictures[:4])
    np.testing.assert_allclose(target.mean[:5, 0, 0], [0.492217229, 0.491522431, 0.490558137, 0.489581697, 0.49084334],
                               rtol=1e-6)
    np.testing.assert_allclose(target.std[:5, 0, 0], [0.068424903, 0.06688285, 0.068803036, 0.068531255, 0.066610094],
                               rtol=1e-6)
    np.testing.assert_allclose(told()[[0, 3]], [
        [-3.040156487, -3.880011644, -3.394497294, -3.759396118, -4.52333972, -3.791567042],
        [-0.649986396, -0.176460421, 0.236374108, 1.210739301, 0.799966882, 0.319029753]], atol=1e-5)


def test_statistics_come_from_other_pictures_as_grey_as_those_of_the_training(tmp_path, monkeypatch):
    before = torch.get_rng_state()
    one, two = distillation.unseen("procedural", 32, 60, seed=0, batches=2)
    assert torch.equal(torch.get_rng_state(), before)
    plain = data.denormalise(torch.cat([one, two]))
    assert 4 < ((plain - plain[:, :1]).abs().amax((1, 2, 3)) < 1e-5).sum() < 24, "about 10 % of 120"
    training = sources.parse("procedural", 32, 60, 0)
    assert not any(torch.isclose(batch, seen).flatten(1).all(1).any() for batch in (one, two)
                   for seen in (training[0], training[1]))
    used = []
    monkeypatch.setattr(PatchTarget, "standardise", lambda self, batches: used.extend(batches))
    pdn(Recipe(steps=2, side=64, batch=2, sample=3, precision="float32", seed=7), tmp_path / "w.safetensors", limit=1)
    assert torch.equal(torch.cat(used), torch.cat(list(distillation.unseen("procedural", 64, 2, seed=7, batches=2))))


@pytest.mark.parametrize(("count", "batch"), [(5, 3), (5, 5), (2, 7), (3, 4), (3, 8), (1, 2)])
def test_no_picture_is_twice_in_a_batch_unless_there_are_too_few(count, batch):
    for number in range(20):
        chosen = sources.drawn(count, batch, 0, number).tolist()
        assert len(chosen) == batch and set(chosen) <= set(range(count))
        assert sorted(chosen[:count]) == sorted(set(chosen)), "all different, as far as they go"
        assert chosen == [chosen[place % count] for place in range(batch)], "then the same again"
    assert len({tuple(sources.drawn(5, 3, seed, number)) for seed in range(3) for number in range(3)}) > 5


def test_a_batch_of_a_folder_shows_different_photographs(tmp_path):
    for value in range(4):
        Image.new("RGB", (70, 70), (60 * value,) * 3).save(tmp_path / f"{value}.png")
    source = sources.Folder(tmp_path, 64, 4)
    for number in range(5):
        assert len({round(picture.mean().item(), 3) for picture in source[number]}) == 4


def test_first_weights_keep_the_size_of_the_signal():
    """What reaches the last layer; torch's own weights leave little of it."""
    torch.manual_seed(0)
    images, size = torch.nn.functional.avg_pool2d(torch.randn(2, 3, 256, 256), 4) * 4, {}
    with torch.no_grad():
        for name, start in (("own", lambda network: network), ("he", distillation.initialised)):
            network = start(PDN("pdn_small", padding=True))
            size[name] = torch.nn.Sequential(*list(network)[:-1])(images).std()
    assert size["he"] > 5 * size["own"]
    assert network.conv4.bias.abs().max() == 0 and network(images).std() < size["he"]


def test_padding_only_adds_the_rim():
    """Distilled with padding, used without: the same vectors, but for the four at each side."""
    padded, plain = PDN("pdn_small", padding=True).eval(), PDN("pdn_small").eval()
    plain.load_state_dict(padded.state_dict())
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(padded(images)[..., 4:-4, 4:-4], plain(images), atol=1e-5, rtol=1e-4)
    assert padded(images).shape == (1, 384, 24, 24)


def test_the_network_comes_closer_to_the_target(tmp_path):
    """A few steps on one picture, by the loop that every loss can use."""
    class One:
        identity = "one picture"

        def __getitem__(self, number):
            return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 1, 1)

    def losses(images):
        return {"distance": (network(images) - images.sum(1, keepdim=True)).square().mean()}

    course = distillation.distil(network, losses, One(), steps=60, rate=0.1, decay=0.0, seed=0,
                                 checkpoint=tmp_path / "c", subject={}, code={})
    assert course.losses["distance"][-1] < 0.05 * course.losses["distance"][0]


def test_shortened_distillation_makes_a_file_the_library_loads(tmp_path, capsys, photographs):
    out = tmp_path / "new" / "pdn.safetensors"
    assert main([str(out), *TINY, f"--pictures={photographs}"]) == 0
    printed = json.loads(capsys.readouterr().out)
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["card"]) == printed
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}     # noqa: SIM118
    assert printed["pictures"] == 8 and str(photographs) not in json.dumps(printed)
    assert backbones.load("pdn_small", None, str(out))(torch.zeros(1, 3, 64, 64))[1].shape == (1, 384, 8, 8)
    assert [path.name for path in out.parent.iterdir()] == [out.name], "no checkpoint is left"


def test_an_interrupted_distillation_ends_with_the_same_weights(tmp_path):
    torch.set_num_threads(1)
    recipe = Recipe(steps=4, side=64, batch=2, sample=2, precision="float32")
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    pdn(recipe, whole)
    assert pdn(recipe, parts, limit=2) is None and not parts.exists()
    pdn(recipe, parts)
    with safe_open(whole, "pt") as one, safe_open(parts, "pt") as two:
        assert all(torch.equal(one.get_tensor(key), two.get_tensor(key)) for key in one.keys())   # noqa: SIM118


@pytest.mark.parametrize(("options", "message"), [
    ({"network": "resnet18"}, "network=resnet18"), ({"side": 72}, "side=72.*multiple of 16"), ({"side": 32}, "side=32"),
    ({"steps": 1}, "steps=1"), ({"batch": 0}, "batch=0"), ({"sample": 0}, "sample=0"), ({"layers": (5,)}, "layers=5"),
    ({"precision": "half"}, "precision=half")])
def test_wrong_recipes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_the_file_must_be_safetensors(tmp_path):
    with pytest.raises(TrainingError, match="safetensors"):
        pdn(Recipe(), tmp_path / "w.pt")

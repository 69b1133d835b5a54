"""Uninformed Students: dense evaluation against patch by patch, every formula against plain loops, what is held out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from thesis_lib.core import paths
from thesis_lib.core.errors import ThesisError
from thesis_lib.data import Pictures
from thesis_lib.methods import UninformedStudents
from thesis_lib.methods.base import Prediction
from thesis_lib.methods.uninformed_students import describe, error_and_variance, inside, rims
from thesis_lib.networks import backbones
from thesis_lib.networks.patchnets import LAYERS, PatchNetwork
from thesis_lib.training import teachers

pytestmark = pytest.mark.usefixtures("networks_built_once")
TINY = {"layers": (1,), "weights": "random", "patch_sizes": (17, 33), "channels": 4, "source": "nominal",
        "teacher_steps": 3, "teacher_batch": 16, "epochs": 2, "rate": 1e-3, "stride": 8}


def one_patch(network, patch):
    """The network as its table says, on p x p pixels, pooling after pooling."""
    x, convolutions = patch, iter(network.convolutions)
    for layer in LAYERS[network.p]:
        if layer == "pool":
            x = F.max_pool2d(x, 2)
        else:
            convolution = next(convolutions)
            x = convolution(x)
            if convolution is not network.convolutions[-1]:
                x = F.leaky_relu(x, 0.005)
    assert x.shape[2:] == (1, 1)
    return x[..., 0, 0]


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("p", LAYERS)
def test_dense_equals_patch_by_patch(p, stride):
    torch.manual_seed(p)
    network = PatchNetwork(p, 3).requires_grad_(False)
    images = torch.randn(2, 3, p + 18, p + 11)
    dense = network(images, stride)
    assert dense.shape == (2, 3, 18 // stride + 1, 11 // stride + 1)
    patches = images.unfold(2, p, stride).unfold(3, p, stride).permute(0, 2, 3, 1, 4, 5)        # (B, h, w, 3, p, p)
    expected = one_patch(network, patches.reshape(-1, 3, p, p)).view(2, *dense.shape[2:], 3)
    torch.testing.assert_close(dense, expected.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-4)
    assert dense.std() > 1e-3


def test_too_small_a_picture_is_refused(pad, small):
    with pytest.raises(ValueError, match="images of 60x90 pixels: a patch has 65x65"):
        PatchNetwork(65, 2)(torch.zeros(1, 3, 60, 90))
    with pytest.raises(ValueError, match=r"images of 64x64 pixels: patch_sizes=\(65,\)"):
        UninformedStudents(**{**TINY, "patch_sizes": (65,)}).fit(Pictures(pad.train, small))
    tiny = UninformedStudents(**{**TINY, "stride": 10})
    tiny.check_pictures(4, 42)                              # centres at 25 pixels, patches from 9 to 41
    with pytest.raises(ValueError, match=r"images of 41x41 pixels: patch_sizes=\(17, 33\) do not fit .* stride=10"):
        tiny.check_pictures(4, 41)


def within(p, side, stride):
    """Positions along a side whose patch lies in the picture, one by one."""
    middles = [i * stride + stride // 2 for i in range(side) if i * stride + stride // 2 < side]
    return [i for i, middle in enumerate(middles) if middle - p // 2 >= 0 and middle + p // 2 < side]


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("p", LAYERS)
def test_inside_are_the_positions_whose_patch_lies_in_the_picture(p, stride):
    torch.manual_seed(p)
    network, images = PatchNetwork(p, 3).requires_grad_(False), torch.randn(2, 3, p + 13, p + 22)
    found, everywhere = inside(network, images, stride), describe(network, images, stride)
    rows, columns = (within(p, side, stride) for side in images.shape[2:])
    torch.testing.assert_close(found, everywhere[:, :, rows][..., columns], atol=1e-5, rtol=1e-4)
    for positions, side, count in zip((rows, columns), images.shape[2:], everywhere.shape[2:], strict=True):
        assert rims(p, side, stride) == (positions[0], count - 1 - positions[-1])


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_an_enlarged_map_lies_over_its_patches(stride):
    """A dot in the picture, and a network that adds up the middle of a patch: they meet, half a pixel apart at most."""
    network = PatchNetwork(17, 1).requires_grad_(False)
    for convolution in network.convolutions:                # their middles, from the last layer to the first: 17 pixels
        torch.nn.init.constant_(convolution.weight, 1 / convolution.weight[0].numel())
        torch.nn.init.zeros_(convolution.bias)
    image = torch.zeros(1, 3, 64, 64)
    image[..., 30, 36] = 1
    full = Prediction(torch.zeros(1), describe(network, image, stride)[:, 0], 0.0).full_map(64)[0].double()
    middle = [(full.sum(1 - axis) / full.sum() * torch.arange(64)).sum().item() for axis in (0, 1)]
    np.testing.assert_allclose(middle, [30, 36], atol=0.5 + 1e-6)


def test_error_and_variance_are_those_of_the_thesis():
    generator = torch.Generator().manual_seed(0)
    said, target = torch.randn(3, 2, 5, 4, 4, generator=generator), torch.randn(2, 5, 4, 4, generator=generator)
    e, v = error_and_variance(said, target)
    for b, i, j in [(0, 0, 0), (1, 3, 2)]:
        students, teacher = said[:, b, :, i, j].tolist(), target[b, :, i, j].tolist()
        mean = [sum(one) / 3 for one in zip(*students, strict=True)]
        assert e[b, i, j].item() == pytest.approx(sum((m - t) ** 2 for m, t in zip(mean, teacher, strict=True)), 1e-5)
        variance = sum(sum(x * x for x in one) for one in students) / 3 - sum(m * m for m in mean)
        assert v[b, i, j].item() == pytest.approx(variance, 1e-4)


def test_the_score_is_the_mean_of_the_normalised_maps(pad, small):
    """Position by position: where a patch of 17 or 33 leaves the picture, the nearest one that does not counts."""
    detector = UninformedStudents(**TINY).fit(Pictures(pad.train, small))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    maps, (_, held) = detector.stages["extraction"](images), detector.split(4)
    nominal = detector.stages["extraction"](next(iter(Pictures([pad.train[index] for index in held], small))))
    expected = np.zeros((2, 8, 8))
    for p, pair, seen in zip((17, 33), maps, nominal, strict=True):
        places = within(p, 64, 8)
        nearest = [places.index(min(max(i, places[0]), places[-1])) for i in range(8)]
        for values, reference in zip(pair, seen, strict=True):
            assert values.shape == (2, len(places), len(places))
            normalised = (values.numpy() - reference.numpy().mean()) / reference.numpy().std()
            expected += normalised[:, nearest][..., nearest] / 2
    prediction = detector.predict(images)
    np.testing.assert_allclose(prediction.map, expected, atol=1e-3, rtol=1e-3)
    assert torch.equal(prediction.score, prediction.map.flatten(1).amax(1)) and len(maps) == 2


def test_the_loss_is_the_squared_distance_to_the_normalised_teacher(pad, small):
    detector = UninformedStudents(**TINY, held_out=0.5)
    collected = detector.collect(Pictures(pad.train, small))
    trained, held = detector.split(4)
    assert sorted(trained + held) == [0, 1, 2, 3] and len(held) == 2
    constants = detector.prepare(collected)
    values = np.moveaxis(collected.described[trained], 1, -1).reshape(-1, 8).astype(np.float64)
    np.testing.assert_allclose(constants["mean"].flatten(), values.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(constants["std"].flatten(), values.std(0), rtol=1e-4)

    detector.backbone_, networks = detector.backbone_, detector.architecture()
    losses, possible = detector.losses(networks, constants, collected, 1), []
    for index in trained:
        image = torch.from_numpy(collected.images[index:index + 1])
        target = (torch.from_numpy(collected.described[index]) - constants["mean"]) / constants["std"]
        possible.append([sum((describe(networks[f"student{p}_{m}"], image, 8)[0] - part).square().sum().item() / 64
                             for m in range(3)) for p, part in zip((17, 33), target.split(4), strict=True)])
    assert [loss.item() for loss in losses.values()] in [pytest.approx(one, rel=1e-4) for one in possible]


def test_held_out_pictures_set_the_moments_and_nothing_else(pad, small):
    detector = UninformedStudents(**TINY)
    collected = detector.collect(Pictures(pad.train, small))
    before = detector.reseeded(0).learn(collected)
    (held,) = detector.split(4)[1]
    collected.images[held] *= 2
    after = detector.reseeded(0).learn(collected)
    for name, value in before.networks_.state_dict().items():
        assert torch.equal(value, after.networks_.state_dict()[name]), name
    assert not torch.equal(before.constants_["moments"], after.constants_["moments"])


def test_teachers_are_distilled_once_and_students_differ(pad, small, monkeypatch):
    detector, genuine, calls = UninformedStudents(**TINY), teachers.distillation.descend, []
    monkeypatch.setattr(teachers.distillation, "descend",
                        lambda *given, **options: calls.append(options["what"]) or genuine(*given, **options))
    detector.fit(Pictures(pad.train, small))
    assert len(list(paths.checkpoints().glob("teacher*"))) == len(calls) == 2
    monkeypatch.setattr(teachers, "cut", lambda *given: pytest.fail("distilled again"))
    other = UninformedStudents(**TINY, seed=1).fit(Pictures(pad.train, small))
    for p in (17, 33):
        same = [torch.equal(a, b) for a, b in zip(detector.networks_[f"teacher{p}"].parameters(),
                                                  other.networks_[f"teacher{p}"].parameters(), strict=True)]
        assert all(same)
        first, second = (detector.networks_[f"student{p}_{m}"].convolutions[0].weight for m in (0, 1))
        assert not torch.equal(first, second)


def test_a_teacher_comes_nearer_to_its_network(pad, small, tmp_path):
    backbone = backbones.load("resnet18", (1,), "random")
    images = torch.cat(list(Pictures(pad.train, small))).numpy()
    losses, genuine = {}, teachers.distillation.descend
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teachers.distillation, "descend",
                      lambda *given, **options: losses.update(genuine(*given, **options).losses))
        lesson = teachers.Lesson(p=17, channels=8, steps=40, batch=32, rate=1e-2, decay=0.0, compactness=0.1,
                                 metric=0.1, precision="float32", seed=0)
        teachers.teach(lesson, backbone, teachers.NominalSource(images, 2, 0), 60, "cpu")
    assert losses.keys() == {"knowledge", "compactness", "metric"}
    assert np.mean(losses["knowledge"][-5:]) < 0.5 * np.mean(losses["knowledge"][:5])


@pytest.mark.parametrize("batch", [17, 24, 32, 40, 64])
@pytest.mark.parametrize("count", [2, 3, 9])
def test_a_negative_of_the_metric_learning_is_of_another_picture(monkeypatch, batch, count):
    """Pictures of one colour each: patches of one picture have one descriptor, those of two pictures have not."""
    images = np.ones((count, 3, 24, 24), np.float32) * np.linspace(-3, 3, count, dtype=np.float32)[:, None, None, None]
    compared, genuine = [], teachers.triplet
    monkeypatch.setattr(teachers, "triplet", lambda patch, near, far: compared.append(
        (patch - far).detach().abs().amax(1)) or genuine(patch, near, far))
    lesson = teachers.Lesson(p=17, channels=8, steps=4, batch=batch, rate=1e-4, decay=0.0, compactness=0.0, metric=1.0,
                             precision="float32", seed=0)
    source = teachers.NominalSource(images, -(-batch // teachers.PATCHES), 0)
    teachers.teach(lesson, backbones.load("resnet18", (1,), "random"), source, 60, "cpu")
    assert len(compared) == 4
    assert all(len(apart) == batch and apart.min() > 1e-4 for apart in compared)


def test_strangers_are_of_a_picture_beside():
    for count in range(17, 200):
        own, other = torch.arange(count) // teachers.PATCHES, teachers.strangers(count) // teachers.PATCHES
        assert teachers.strangers(count).max() < count and (own - other).abs().eq(1).all(), count


def test_nominal_pictures_of_a_batch_differ():
    """Where there are fewer than asked, all of them come in turn."""
    images = np.arange(5, dtype=np.float32)[:, None, None, None]
    for number in range(10):
        assert len(set(teachers.NominalSource(images, 4, 0)[number].flatten().tolist())) == 4
        turns = teachers.NominalSource(images, 12, 0)[number].flatten().tolist()
        assert len(set(turns[:5])) == 5 and turns[5:10] == turns[:5] and turns[10:] == turns[:2]


def test_metric_learning_without_a_second_picture_is_refused_before_the_work(pad, small, tmp_path):
    message = r"metric=1.0, teacher_batch=16: .* needs a teacher_batch of at least 17"
    with pytest.raises(ThesisError, match=message):
        UninformedStudents(**TINY, metric=1.0)
    (folder := tmp_path / "photographs").mkdir()
    Image.new("RGB", (80, 80), (9, 8, 7)).save(folder / "1.png")
    detector = UninformedStudents(**TINY | {"source": str(folder), "metric": 1.0, "teacher_batch": 17})
    for work in (lambda: detector.parameters(identity_only=True), lambda: detector.fit(Pictures(pad.train, small))):
        with pytest.raises(ThesisError, match=r"metric=1.0, source=.*: .* this folder holds one; needs at least 2"):
            work()
    Image.new("RGB", (80, 80)).save(folder / "2.png")
    assert detector.parameters(identity_only=True)["metric"] == 1.0


def test_compactness_is_the_sum_of_squared_correlations():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    correlations = np.corrcoef(x.numpy(), rowvar=False)
    expected = sum(correlations[i, j] ** 2 for i in range(4) for j in range(4) if i != j)
    assert teachers.compactness(x).item() == pytest.approx(expected, rel=1e-4)


def test_triplet_by_hand():
    """d+ = 1; p- is 3 from p and 2 from p+ along the same line: d- = 4, so 1 + 1 - 4 < 0. The second: 1 + 4 - 1 = 4."""
    one, near, far = torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [1.0]])
    assert teachers.triplet(one, near, far).item() == 2
    assert teachers.triplet(one[:1], near[:1], far[:1]).item() == 0


def test_patches_are_cut_out_of_their_pictures():
    images = torch.arange(2 * 3 * 20 * 24, dtype=torch.float32).view(2, 3, 20, 24)
    patches = teachers.cut(images, 17)
    assert patches.shape == (2 * teachers.PATCHES, 3, 17, 17)
    windows = images.unfold(2, 17, 1).unfold(3, 17, 1)
    corners = [tuple(np.argwhere((windows[number // teachers.PATCHES, 0, :, :, 0, 0] == patch[0, 0, 0]).numpy())[0])
               for number, patch in enumerate(patches)]
    for number, (patch, (i, j)) in enumerate(zip(patches, corners, strict=True)):
        assert torch.equal(patch, images[number // teachers.PATCHES, :, i:i + 17, j:j + 17])
    assert len(set(corners)) > 5


@pytest.mark.parametrize(("parameters", "message"), [
    ({"patch_sizes": (32,)}, r"patch_sizes=\(32,\): needs some of 17, 33, 65"), ({"patch_sizes": ()}, "patch_sizes"),
    ({"channels": 0}, "channels=0"), ({"stride": 0}, "stride=0"), ({"teacher_steps": 0}, "teacher_steps=0"),
    ({"teacher_batch": 0}, "teacher_batch=0"), ({"students": 0}, "students=0"), ({"epochs": 0}, "epochs=0"),
    ({"rate": 0.0}, "rate=0.0"), ({"teacher_rate": -1.0}, "teacher_rate=-1.0"), ({"metric": -1.0}, "metric=-1.0"),
    ({"compactness": -1.0}, "compactness"), ({"decay": -1.0}, "decay"), ({"held_out": 1.0}, "held_out=1.0"),
    ({"layers": (1, 2)}, "needs one level"), ({"backbone": "convnext_tiny"}, "backbone='convnext_tiny'"),
    ({"source": "nowhere"}, "nowhere: is no source"), ({"engine": "fast"}, "engine='fast'"),
    ({"precision": "half"}, "precision='half'")])
def test_wrong_values_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        UninformedStudents(**{"weights": "random", **parameters}).parameters(identity_only=True)

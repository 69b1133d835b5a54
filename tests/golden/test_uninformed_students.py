"""Uninformed Students against LuyaooChen/uninformed-students-pytorch and denguir/student-teacher-anomaly-detection, in
float64: descriptors, five steps of three students, error, variance and score, and the losses of a teacher.

Not compared: descriptors of 128 numbers, the loop of the distillation with its L_KD, pictures that are held out, and
the rim: the library scores no position whose patch leaves the picture, the references do.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.random import RandomState

from tests.golden.recipe import check, check_layers, convolutions, golden
from thesis_lib.methods import UninformedStudents, uninformed_students
from thesis_lib.methods.uninformed_students import TaughtPatches, describe
from thesis_lib.networks.patchnets import PatchNetwork
from thesis_lib.training import teachers

pytestmark = pytest.mark.usefixtures("exact")
GOLDEN = golden("uninformed_students")
SEEDS = {17: 401, 33: 402, 65: 405}             # patch size -> seed of its networks
D, STUDENTS = 16, 3
CLOSE = {"rtol": 1e-10, "atol": 1e-12, "of_sum": 1e-9}


def networks_of(p, count):
    """The teacher of this patch size, then its students; `count` networks of one random stream."""
    rng, networks = RandomState(SEEDS[p]), []
    for _ in range(count):
        network = PatchNetwork(p, D)
        for layer in convolutions(network):
            outputs, *window = layer.weight.shape
            layer.weight.data = torch.from_numpy(rng.standard_normal((outputs, *window)) * (2 / np.prod(window)) ** 0.5)
            layer.bias.data = torch.from_numpy(0.1 * rng.standard_normal(outputs))
        networks.append(network)
    return networks


@pytest.fixture(scope="module")
def pictures(exact):
    """Three to train on and one with a defect, (4, 3, 32, 32)."""
    drawn = RandomState(403).standard_normal((4, 3, 32, 32))
    drawn[3, :, 12:18, 14:20] += 3
    return torch.from_numpy(drawn)


@pytest.fixture(scope="module")
def mirrored(exact):
    """Patches that leave the picture count, as in the references: no patch of 33 pixels lies in these of 32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uninformed_students, "inside", describe)
        patch.setattr(uninformed_students, "rims", lambda p, side, stride: (0, 0))
        yield


@pytest.fixture(scope="module")
def fitted(mirrored, pictures, tmp_path_factory):
    """Students of both patch sizes after five steps, and what they have learned from."""
    genuine = UninformedStudents.architecture

    def architecture(self):
        built = genuine(self)
        for p in self.patch_sizes:
            names = [f"teacher{p}", *(f"student{p}_{m}" for m in range(STUDENTS))]
            for name, network in zip(names, networks_of(p, len(names)), strict=True):
                built[name].load_state_dict(network.state_dict())
        return built

    detector = UninformedStudents(patch_sizes=(17, 33), channels=D, stride=1, students=STUDENTS, held_out=0.25,
                                  snapshots=1)
    detector.backbone_, detector.image_size_ = SimpleNamespace(weights={}), (32, 32)
    images = pictures[[3, 0, 1, 2]]                 # the first one is held out
    with torch.no_grad():
        described = torch.cat([describe(networks_of(p, 1)[0], images, 1) for p in detector.patch_sizes], dim=1)
    collected = TaughtPatches(images.numpy(), described.numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THESIS_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        patch.setattr(UninformedStudents, "architecture", architecture)
        patch.setattr(UninformedStudents, "steps_of", lambda self, collected: 5)
        patch.setattr(np.random, "default_rng", lambda seed: SimpleNamespace(permutation=np.arange))    # as listed
        return detector.learn(collected), collected


def test_inputs(pictures):
    check(pictures, GOLDEN["inputs"]["pictures"], rtol=1e-9)
    for p in (17, 33):
        first, *_, last = networks_of(p, 1 + STUDENTS)
        expected = GOLDEN["inputs"][str(p)]
        check(convolutions(first)[0].weight, expected["teacher_first_weight"], rtol=1e-9)
        check(convolutions(last)[-1].bias, expected["last_student_last_bias"], rtol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 4, 8])
@pytest.mark.parametrize("p", SEEDS)
def test_descriptors(pictures, p, stride):
    """At every pixel, and what strides leave of them; theirs begin in the corner, `describe` half a stride later."""
    image = pictures[3:]
    if p == 65:
        image = torch.from_numpy(RandomState(406).standard_normal((1, 3, 40, 40)))
        check(image, GOLDEN["inputs"]["picture_of_65"], rtol=1e-9)
    described = networks_of(p, 1)[0](F.pad(image, [p // 2] * 4, mode="reflect"), stride)
    if stride == 1:
        assert torch.equal(described, describe(networks_of(p, 1)[0], image, stride))
    check(described[0].permute(1, 2, 0), GOLDEN[str(p)]["described"][str(stride)], **CLOSE)


def test_five_steps(fitted):
    detector, _ = fitted
    statistics = zip(*(detector.constants_[name].split(D) for name in ("mean", "std")), strict=True)
    for p, (mean, std) in zip(detector.patch_sizes, statistics, strict=True):
        expected = GOLDEN[str(p)]
        np.testing.assert_allclose(mean.flatten(), expected["teacher_mean"], rtol=1e-10)
        np.testing.assert_allclose(std.flatten().square(), expected["teacher_variance"], rtol=1e-10)
        losses = np.sum(expected["losses_by_student"], axis=0)
        np.testing.assert_allclose(detector.course_.losses[f"p{p}"], losses, rtol=1e-10)
        for m, described in enumerate(expected["after_by_student"]):
            check_layers(detector.networks_[f"student{p}_{m}"], described, **CLOSE)


def test_error_variance_and_score(monkeypatch, fitted, pictures):
    """The references take mean and deviation over the pictures trained on, ours over those held out; here, theirs."""
    detector, collected = fitted
    maps = detector.stages["extraction"](pictures[3:])
    monkeypatch.setattr(detector, "split", lambda count: ([], [1, 2, 3]))
    moments = detector.calibrate(detector.networks_, detector.constants_, collected)["moments"]
    for number, p in enumerate(detector.patch_sizes):
        expected, (error, variance) = GOLDEN[str(p)], maps[number]
        check(error[0], expected["error"], **CLOSE)
        check(variance[0], expected["variance"], **CLOSE)
        wanted = [[expected["moments"][of]["mean"], expected["moments"][of]["variance"] ** 0.5] for of in ("e", "v")]
        np.testing.assert_allclose(moments[number], wanted, rtol=1e-10)
        part = slice(number, number + 1)
        with monkeypatch.context() as patch:
            patch.setattr(detector, "patch_sizes", (p,))
            check(detector._score(maps[part], moments[part]).map[0], expected["score_map"], **CLOSE)
    monkeypatch.setitem(detector.constants_, "moments", moments)
    prediction = detector.stages["score"](maps)
    check(prediction.map[0], GOLDEN["both"], **CLOSE)
    assert prediction.score.item() == pytest.approx(GOLDEN["both"]["max"], rel=1e-10)


def test_losses_of_a_teacher():
    """L_C of the references correlates descriptors and counts every pair once; that of the thesis correlates the
    numbers of a descriptor and counts a pair twice, so it is twice their function of the transposed matrix. L_M has no
    reference but its formula.
    """
    rng, expected = RandomState(404), GOLDEN["teacher_losses"]
    said, wanted = rng.standard_normal((12, 16)), rng.standard_normal((12, 16))
    near = said + 0.3 * rng.standard_normal((12, 16))
    far = rng.standard_normal((12, 16))
    far[:8] = said[:8] + 0.25 * rng.standard_normal((8, 16))
    drawn = {"output": said, "target": wanted, "near": near, "far": far}
    for name, values in drawn.items():
        check(values, expected["inputs"][name], rtol=1e-9)
    said, near, far = (torch.from_numpy(drawn[name]) for name in ("output", "near", "far"))
    assert teachers.compactness(said).item() == pytest.approx(expected["compactness_of_the_thesis"], rel=1e-10)
    assert teachers.compactness(said).item() == pytest.approx(2 * expected["compactness_transposed"], rel=1e-10)
    assert teachers.compactness(said.T).item() == pytest.approx(2 * expected["compactness_of_samples"], rel=1e-10)
    assert teachers.triplet(said, near, far).item() == pytest.approx(expected["triplet_by_formula"], rel=1e-10)
    nearer = (near - far).square().sum(1) < (said - far).square().sum(1)
    assert nearer.sum() == expected["rows_where_the_near_one_is_closer_to_the_far_one"]

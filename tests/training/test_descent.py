"""The loop of all trainings: checkpoint, resume, refusals; and what the trained detectors share."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from thesis_lib.core import memory, paths
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.parameters import parameter
from thesis_lib.data import Pictures
from thesis_lib.evaluation import scores, stage_times
from thesis_lib.methods.base import Prediction
from thesis_lib.methods.trained import Trained, held_out, standard
from thesis_lib.networks.torch_setup import check_torch_device
from thesis_lib.training import descent
from thesis_lib.training.descent import TrainingError, descend


def fit_line(checkpoint, steps=12, rate=0.1, subject=None, seed=5, code=None, **options):
    """y = 2 x + 1 from noisy points that each step draws."""
    torch.manual_seed(3)
    line = nn.Linear(1, 1)
    optimizer = torch.optim.Adam(line.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)

    def losses(step):
        x = torch.randn(8, 1)
        fit = (line(nn.functional.dropout(x, 0.1)) - 2 * x - 1).square().mean()
        return {"fit": fit, "size": 0.01 * line.bias.abs().sum()}

    course = descend(line, [optimizer], losses, schedules=[schedule], steps=steps, seed=seed, checkpoint=checkpoint,
                     subject=subject or {"rate": rate}, code=code or {"losses": "0"}, keep=(4, steps),
                     snapshot=lambda: {"weight": line.weight.detach().clone()}, **options)
    return line, course


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path):
    whole, course = fit_line(tmp_path / "whole")
    for limit in (3, 5):
        part = fit_line(tmp_path / "parts", limit=limit)[1]
    assert part.step == 8
    resumed, again = fit_line(tmp_path / "parts")
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)
    assert course.losses == again.losses and len(course.losses["fit"]) == 12
    assert course.kept.keys() == again.kept.keys() == {4, 12}
    assert all(torch.equal(course.kept[step]["weight"], again.kept[step]["weight"]) for step in (4, 12))


@pytest.mark.parametrize("granted", [None, "1", "2"])
def test_a_batch_of_many_grants_a_training_its_threads(tmp_path, monkeypatch, granted):
    """Its numbers depend on them; afterwards, torch has those it had."""
    monkeypatch.delenv("THESIS_TRAINING_THREADS", raising=False)
    if granted:
        monkeypatch.setenv("THESIS_TRAINING_THREADS", granted)
    used, genuine, before = set(), torch.optim.Adam.step, torch.get_num_threads()
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: used.add(torch.get_num_threads()) or genuine(self))
    fit_line(tmp_path / "c")
    assert used == {int(granted or before)} and torch.get_num_threads() == before


def test_another_seed_draws_other_numbers(tmp_path):
    """Of the steps, from the same first weights."""
    assert fit_line(tmp_path / "one", seed=1)[1].losses != fit_line(tmp_path / "two", seed=2)[1].losses


def test_a_finished_training_is_not_repeated(tmp_path, monkeypatch):
    done, course = fit_line(tmp_path / "c")
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: pytest.fail("trained again"))
    taken, same = fit_line(tmp_path / "c")
    assert torch.equal(done.weight, taken.weight) and same.losses == course.losses


def test_the_global_generator_is_left_alone(tmp_path):
    torch.manual_seed(3)
    nn.Linear(1, 1)
    expected = torch.rand(3)
    fit_line(tmp_path / "c")
    assert torch.equal(torch.rand(3), expected)


def test_checkpoints_are_written_by_the_clock(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(descent, "_save", lambda path, subject, conditions, parts, course: written.append(course.step))
    fit_line(tmp_path / "c", every_s=0)
    assert written == list(range(1, 13))
    written.clear()
    fit_line(tmp_path / "c", every_s=1000)
    assert written == [12]


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda path: fit_line(path, subject={"rate": 0.2}, limit=1), "another recipe than rate=0.1"),
    (lambda path: path.write_bytes(b"no checkpoint"), "not a readable checkpoint"),
    (lambda path: torch.save({"subject": "{}"}, path), "another recipe than rate=0.1")])
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, spoil, message):
    path = tmp_path / "c"
    spoil(path)
    with pytest.raises(TrainingError, match=message):
        fit_line(path)


def made_by(path, **conditions):
    """Write other conditions into a checkpoint, such as those of a machine that is not at hand."""
    stored = torch.load(path, weights_only=True)
    stored["conditions"] = json.dumps(json.loads(stored["conditions"]) | conditions)
    torch.save(stored, path)


@pytest.mark.parametrize(("before", "conditions", "told"), [
    ({"code": {"losses": "1", "network": "0", "gone": "0"}}, {}, r"code \(gone, losses\)"),
    ({"threads": "1"}, {}, r"threads \(1, now 2\)"),
    ({}, {"torch_device": "cuda"}, r"torch device \(cuda, now cpu\)"),
    ({}, {"versions": {"torch": "1.0"}}, r"versions of packages \(\{'torch': '1.0'\}, now \{.*'torch': .*\}\)"),
    ({"code": {"losses": "1", "network": "0"}}, {"torch_device": "cuda", "threads": None},
     r"code \(losses\) and torch device \(cuda, now cpu\) and threads \(None, now 2\)")])
def test_a_checkpoint_made_under_other_conditions_is_not_taken_up(tmp_path, monkeypatch, caplog, before, conditions,
                                                                  told):
    """Its steps drew other numbers, so that one that was taken up would show."""
    path, code = tmp_path / "c", {"losses": "0", "network": "0"}
    monkeypatch.setenv("THESIS_TRAINING_THREADS", before.get("threads", "2"))
    fit_line(path, limit=5, seed=99, code=before.get("code", code))
    made_by(path, **conditions)
    monkeypatch.setenv("THESIS_TRAINING_THREADS", "2")
    fresh, course = fit_line(tmp_path / "fresh", code=code)
    with caplog.at_level("INFO"):
        part = fit_line(path, limit=3, code=code)[1]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert re.fullmatch(rf"training: c was made by other {told}; training starts anew", warnings[0])
    assert part.step == 3 and "going on" not in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        line, again = fit_line(path, code=code)
    assert "c: going on after step 3" in caplog.text and "anew" not in caplog.text
    assert torch.equal(line.weight, fresh.weight) and torch.equal(line.bias, fresh.bias)
    assert again.losses == course.losses and len(again.losses["fit"]) == 12
    assert torch.equal(again.kept[4]["weight"], course.kept[4]["weight"])


def test_code_of_the_loop_itself_is_a_condition(tmp_path):
    fit_line(tmp_path / "c", limit=1)
    stored = json.loads(torch.load(tmp_path / "c", weights_only=True)["conditions"])
    assert {"losses", "thesis_lib.training.descent", "thesis_lib.core.seeds"} <= set(stored["code"])
    assert "torch" in stored["versions"]


SAVES = """
import sys, time
from pathlib import Path
import torch
from thesis_lib.training import descent
folder, number = Path(sys.argv[1]), int(sys.argv[2])
network = torch.nn.Linear(200, 200)
torch.nn.init.constant_(network.weight, number)
(folder / f"ready{number}").touch()
while len(list(folder.glob("ready*"))) < 2:
    time.sleep(0.001)
for step in range(300):
    descent._save(folder / "made" / "c", {"rate": 1}, {}, {"network": network}, descent.Course(step=step))
"""


def test_two_processes_may_save_one_checkpoint_at_once(tmp_path):
    """Each writes to a name of its own: one of them wins whole, neither breaks, nothing is left over."""
    started = [subprocess.Popen([sys.executable, "-c", SAVES, str(tmp_path), str(number)], stderr=subprocess.PIPE,
                                text=True) for number in (1, 2)]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["c"]
    stored = torch.load(tmp_path / "made" / "c", weights_only=True)
    assert stored["course"]["step"] == 299 and stored["network"]["weight"].unique().tolist() in ([1.0], [2.0])


def test_numbers_that_run_away_are_named_and_not_stored(tmp_path):
    with pytest.raises(TrainingError, match=r"training: the loss fit of step \d+ is not finite"):
        fit_line(tmp_path / "c", rate=1e30)
    assert not (tmp_path / "c").exists()


def test_damaged_weights_never_reach_a_checkpoint(tmp_path):
    line, course = fit_line(tmp_path / "c", limit=3)
    before = (tmp_path / "c").read_bytes()
    nn.init.constant_(line.weight, float("nan"))
    with pytest.raises(TrainingError, match="step 3: the weights are not finite"):
        descent._save(tmp_path / "c", {}, {}, {"network": line}, course)
    assert (tmp_path / "c").read_bytes() == before


def test_the_torch_device_is_named(tmp_path):
    for call in (lambda: check_torch_device("abacus"), lambda: fit_line(tmp_path / "c", torch_device="abacus")):
        with pytest.raises(ThesisError, match="torch_device=abacus: needs cpu, or cuda"):
            call()
    assert not (tmp_path / "c").exists()


@dataclass(kw_only=True)
class Darkness(Trained):
    """Learns the mean picture; what is brighter anywhere is anomalous."""

    steps: int = parameter(8, "steps")
    layers: tuple[int, ...] = parameter((1,), "levels")
    weights: str = parameter("random", "weights")

    name: ClassVar[str] = "darkness"

    def architecture(self):
        return nn.ModuleDict({"mean": nn.Conv2d(3, 1, 1)})

    def optimizers(self, networks, steps):
        return [torch.optim.SGD(networks.parameters(), lr=0.05)], []

    def steps_of(self, collected):
        return self.steps

    def gather(self, maps):
        return memory.on_disk(maps.pictures())

    def prepare(self, collected):
        return {"offset": torch.tensor(0.5)}

    def losses(self, networks, constants, collected, step):
        image = torch.from_numpy(collected[torch.randint(len(collected), ()).item()])
        return {"square": (networks["mean"](image[None]) - constants["offset"]).square().mean()}

    def calibrate(self, networks, constants, collected):
        return {"level": networks["mean"](torch.from_numpy(collected[:1])).mean()}

    @property
    def stages(self):
        mean = self._learned("networks_")["mean"]

        def score(images):
            heat = (mean(images)[:, 0] - self.constants_["level"]).abs()
            return Prediction(heat.flatten(1).amax(1), heat)
        return {"extraction": lambda images: images, "score": score}


def test_a_trained_detector_keeps_states_on_the_way(pad, small):
    detector = Darkness(snapshots=4).fit(Pictures(pad.train, small))
    assert list(detector.course_.kept) == [2, 4, 6, 8]
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(detector.at(8).predict(image).score, detector.predict(image).score)
    assert not torch.equal(detector.at(2).predict(image).score, detector.predict(image).score)
    assert len(list(paths.checkpoints().iterdir())) == 1


def test_a_trained_detector_is_saved_and_loaded(pad, small, tmp_path):
    detector = Darkness().fit(Pictures(pad.train, small))
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    loaded = Darkness.load(detector.save(tmp_path / "d.safetensors"))
    assert torch.equal(loaded.predict(image).score, detector.predict(image).score)


def test_another_training_has_another_checkpoint(pad, small, monkeypatch):
    pictures = Pictures(pad.train, small)
    Darkness().fit(pictures)
    for other in (Darkness(seed=1), Darkness(steps=9), Darkness(snapshots=2)):
        other.fit(pictures)
    Darkness().fit(Pictures(pad.train[:3], small))
    assert len(list(paths.checkpoints().iterdir())) == 5
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: pytest.fail("trained again"))
    Darkness().fit(pictures)


def test_resume_false_starts_anew(pad, small, monkeypatch):
    pictures, steps, genuine = Pictures(pad.train, small), [], torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: steps.append(1) or genuine(self))
    first = Darkness().fit(pictures).course_
    assert len(steps) == 8 and Darkness().fit(pictures).course_.losses == first.losses and len(steps) == 8
    again = Darkness(resume=False).fit(pictures).course_
    assert first.losses == again.losses and len(steps) == 2 * 8


def test_a_test_picture_is_refused(pad, small):
    with pytest.raises(ValueError, match="is a test picture"):
        Darkness().fit(Pictures(pad.test, small))


def test_rows_hold_last_and_best_on_test(pad, small, tmp_path):
    rows = scores.evaluate(Darkness(), pad, small, seeds=2)
    one = rows.iloc[0]
    assert len(rows) == 2 and one["training.steps"] == [2, 3, 5, 6, 8]
    assert one["image_auroc"] == one["training.image_auroc"][-1] <= one["training.best_on_test"]
    assert len(one["training.losses.square"]) == len(one["training.loss_steps"]) == 8
    json.dumps(one["training.losses.square"])
    assert stage_times.measure_time(Darkness(), pad, small, pictures=1)["stage_ms"].keys() == {"extraction", "score"}


@pytest.mark.parametrize(("options", "message"), [
    ({"snapshots": 0}, "snapshots=0"), ({"precision": "half"}, "precision='half'"), ({"backbone": "vgg"}, "vgg")])
def test_wrong_parameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Darkness(**options)


@pytest.mark.parametrize(("units", "told", "expected"), [
    ({"amx_bf16": True, "avx2": True}, "AVX512", "bfloat16"), ({"avx512_bf16": True}, "AVX512", "bfloat16"),
    ({"amx_bf16": False, "avx512_f": True}, "AVX512", "float32"), ({}, "AVX2", "float32"), ({}, "DEFAULT", "float32"),
    ({"avx512_bf16": True}, "AVX2", "float32")])
def test_a_row_names_the_precision_that_auto_has_chosen(monkeypatch, units, told, expected):
    """Units that torch is told to leave alone (ATEN_CPU_CAPABILITY) count as missing."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: told)
    chosen = Darkness(precision="auto")
    assert chosen.parameters(identity_only=True)["precision"] == expected == chosen.precision
    assert Darkness(precision="float32").precision == "float32"


@pytest.mark.parametrize(("count", "share", "held"), [
    (10, 0.1, 1), (10, 0.0, 1), (10, 0.34, 4), (2, 0.9, 1), (3, 0.99, 2), (11, 0.1, 2), (209, 0.1, 21), (320, 0.1, 32)])
def test_something_is_held_out_and_something_trained_on(count, share, held):
    trained, out = held_out(list(range(count)), share)
    assert len(out) == held and sorted(trained + out) == list(range(count))


def test_standard_is_mean_and_deviation_of_the_chosen():
    maps = np.random.default_rng(0).normal(3, 2, (5, 4, 6, 6)).astype(np.float32)
    found = standard(maps, [0, 2, 3])
    chosen = maps[[0, 2, 3]].astype(float)
    assert np.allclose(found["mean"][:, 0, 0], chosen.mean((0, 2, 3)), atol=1e-6)
    assert np.allclose(found["std"][:, 0, 0], chosen.std((0, 2, 3)), atol=1e-6)

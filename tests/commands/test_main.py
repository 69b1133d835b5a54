"""The command line: exit codes, one line per error, one JSON object for programs."""

import argparse
import dataclasses
import errno
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from thesis_lib import data
from thesis_lib.batch import forecast, plan
from thesis_lib.batch import run as runner
from thesis_lib.commands import doctor, exit_codes, main, methods
from thesis_lib.core import memory, paths
from thesis_lib.core.errors import ThesisError
from thesis_lib.data import synthetic
from thesis_lib.evaluation import scores
from thesis_lib.methods import METHODS, PatchCore
from thesis_lib.patches import search

pytestmark = pytest.mark.usefixtures("networks_built_once")

TINY = ("--weights", "random", "--layers", "1", "--image-size", "64", "--bank", "20")


def commands(parser, *words):
    """Every command and subcommand as its words, () for the program itself."""
    found = [words]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, sub in action.choices.items():
                found += commands(sub, *words, word)
    return found


@pytest.fixture
def thesis(capsys):
    """thesis("evaluate", ...) -> exit code, lines of stdout, lines of stderr; argparse exits with one."""
    def run(*arguments):
        capsys.readouterr()
        try:
            code = main.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()
    return run


@pytest.fixture
def evaluate(thesis, make_category):
    """evaluate(options...) of PatchCore on the category pad, one seed."""
    root = make_category()

    def run(*options, command="evaluate"):
        count = ("--seeds", 1) if command == "evaluate" else ("--warmup", 0, "--repeats", 1, "--pictures", 1)
        return thesis(command, "patchcore", "--data", root, "--category", "pad", *TINY, *count, *options)
    return run


@pytest.mark.parametrize("command", commands(main.parser()), ids=" ".join)
def test_help_of_everything(thesis, command):
    code, out, err = thesis(*command, "--help")
    assert (code, err) == (0, [])
    assert out[0].startswith("usage: ")


@pytest.mark.parametrize("command", ["evaluate", "time"])
def test_every_parameter_is_an_option_with_its_default(thesis, command):
    for method, kind in METHODS.items():
        given = vars(main.parser().parse_args([command, method, "--data", "x", "--category", "y"]))
        defaults = {field.name: field.default for field in dataclasses.fields(kind)} | vars(data.Preprocess())
        defaults.pop("seed")
        assert {name: given[name] for name in defaults} == defaults
        text = "\n".join(thesis(command, method, "--help")[1])
        assert not [name for name in defaults if f"--{name.replace('_', '-')} " not in text]
        assert f"(default: {defaults['backbone']})" in text


def test_json_is_one_object_on_the_last_line(evaluate, pad, small):
    code, out, err = evaluate("--json", "--seeds", 2)
    answer = json.loads(out[-1])
    assert (code, err) == (0, [])
    rows = scores.evaluate(PatchCore(weights="random", layers=(1,), bank=20), pad, small, seeds=2)
    assert answer["per_seed"] == rows["image_auroc"].tolist()
    assert answer["rows"] == rows["id"].tolist(), "the same configuration, so the stored rows"
    assert answer["image_auroc"] == pytest.approx(rows["image_auroc"].mean())
    assert answer["pixel_auroc"] == pytest.approx(rows["pixel_auroc"].mean())
    assert answer["pro"] == pytest.approx(rows["pro"].mean())
    assert answer["sd"] == pytest.approx(rows["image_auroc"].std(), abs=1e-9)
    assert answer["low"] <= answer["image_auroc"] <= answer["high"] <= 1
    facts = {"method": "patchcore", "category": "pad", "weights": "random", "seeds": 2, "n_train": 4,
             "n_test": 6}
    assert {key: answer[key] for key in facts} == facts


@pytest.mark.parametrize("seeds", [1, 2])
def test_json_has_the_peak_of_a_single_row(evaluate, seeds):
    peak = json.loads(evaluate("--json", "--seeds", seeds)[1][-1], parse_constant=pytest.fail)["peak_memory_gb"]
    told = memory.Peak().gb                     # None where this system keeps one peak for all of a process
    assert peak is None if told is None or seeds > 1 else 0.5 * told < peak < 2 * told


def test_json_has_null_where_there_is_no_number(thesis, make_category):
    where = ("--data", make_category(masks=False), "--category", "pad")
    code, out, _ = thesis("evaluate", "patchcore", *where, *TINY, "--seeds", 1, "--json")
    answer = json.loads(out[-1], parse_constant=pytest.fail)
    assert code == 0
    assert answer["pixel_auroc"] is answer["pro"] is answer["sd"] is None
    assert any("n/a, not every anomalous picture has a mask" in line for line in out)


@pytest.mark.parametrize(("good", "bad"), [(1, 3), (3, 1)])
def test_a_single_picture_of_a_kind_is_told_to_have_no_interval(thesis, make_category, good, bad):
    where = ("--data", make_category(good=good, bad=bad), "--category", "pad")
    code, out, err = thesis("evaluate", "patchcore", *where, *TINY, "--seeds", 1, "--json")
    answer = json.loads(out[-1], parse_constant=pytest.fail)
    assert (code, err, answer["low"], answer["high"]) == (0, [], None, None)
    auroc = 100 * answer["image_auroc"]
    assert f"image AUROC {auroc:.1f} % (95 % interval none: one kind has a single picture)" in out[0]
    assert not any("nan" in line for line in out)


def test_masks_without_a_pixel_are_told(thesis, make_category):
    root = make_category()
    for file in (root / "pad/ground_truth/hole").iterdir():
        Image.new("L", (64, 64)).save(file)
    code, out, _ = thesis("evaluate", "patchcore", "--data", root, "--category", "pad", *TINY, "--seeds", 1, "--json")
    assert (code, json.loads(out[-1], parse_constant=pytest.fail)["pixel_auroc"]) == (0, None)
    assert "pad: pixel AUROC and PRO n/a, no mask has a pixel at 64x64" in out


def test_random_weights_are_labelled(evaluate):
    assert any("weights random (untrained: no statement about the method)" in line for line in evaluate()[1])


def test_evaluate_can_time_as_well(evaluate):
    _, out, _ = evaluate("--pictures", 1, "--json")
    answer = json.loads(out[-1])
    assert answer["total_ms"] == pytest.approx(sum(answer["stage_ms"].values()))


def test_time_says_stages_and_protocol(evaluate):
    code, out, _ = evaluate("--json", "--batch-size", 2, "--threads", 1, "--seed", 3, command="time")
    answer = json.loads(out[-1])
    assert code == 0
    assert list(answer["stage_ms"]) == ["extraction", "embedding", "search", "score"]
    facts = {"batch_size": 2, "threads": 1, "seed": 3}
    assert {key: answer[key] for key in facts} == facts
    assert answer["protocol"]["repeats"] == 1
    assert "raw_s" not in answer
    assert out[0].startswith("pad: ")
    assert "1 threads" in out[0]


def test_options_reach_detector_and_preprocessing(evaluate, monkeypatch):
    def note(*args, **kwargs):
        seen.append((*args, kwargs))
        raise ThesisError("noted")

    seen = []
    monkeypatch.setattr(scores, "evaluate", note)
    options = ("--layers", "1,2", "--bank", "1%", "--projection", "16", "--search", "cdist", "--score",
               "reweighted", "--neighbours", 4, "--image-size", 96, "--crop", 64, "--resize", "short_side",
               "--interpolation", "lanczos", "--batch-size", 3, "--train-pictures", 2, "--test-pictures", 4,
               "--force")
    assert evaluate(*options) == (2, [], ["thesis: error: noted"])
    (detector, category, preprocess, how), = seen
    expected = {"layers": (1, 2), "bank": "1%", "projection": 16, "search": "cdist", "score": "reweighted",
                "neighbours": 4, "weights": "random", "memory_limit_gb": None}
    assert {key: detector.parameters()[key] for key in expected} == expected
    assert preprocess == data.Preprocess(image_size=96, crop=64, resize="short_side", interpolation="lanczos")
    assert (len(category.train), len(category.test)) == (2, 4)
    assert how == {"seeds": 1, "batch_size": 3, "force": True}


@pytest.mark.parametrize(("options", "told"), [
    (("--bank", "many"), "bank='many'"), (("--bank", "9999999"), "bank=9999999"), (("--bank", "0"), "bank=0"),
    (("--layers", "7"), "layers=7"), (("--embedding", "avg"), "embedding='avg'"),
    (("--embedding", "max_k3_s1_p2"), "embedding='max_k3_s1_p2'"), (("--search", "x"), "search='x'"),
    (("--score", "x"), "score='x'"), (("--score", "reweighted", "--neighbours", "1"), "score=reweighted"),
    (("--coreset", "x"), "coreset='x'"), (("--projection", "0"), "projection=0"),
    (("--search-threads", "-1"), "search_threads=-1"), (("--backbone", "x"), "backbone='x'"),
    (("--weights", "x"), "weights='x'"), (("--image-size", "8"), "image_size=8"),
    (("--image-size", "0x64"), "image_size=0x64: needs at least 32 pixels"), (("--crop", "99"), "crop=99"),
    (("--roi", "1,2,3"), "roi=1,2,3: needs four numbers"), (("--roi", "no.png"), "roi=no.png: needs x,y,w,h"),
    (("--roi", "1,2,3,4,x"), "roi=1,2,3,4,x: needs x,y,w,h"), (("--tiles", "0x2"), "tiles=0x2: needs columns x rows"),
    (("--resize", "short_side"), "resize=short_side"), (("--interpolation", "x"), "interpolation='x'"),
    (("--seeds", "0"), "seeds: needs"), (("--seeds", "-2"), "seeds: needs"),
    (("--threads", "0"), "--threads 0"), (("--memory-limit-gb", "0.0001"), "memory_limit_gb"),
    (("--batch-size", "0"), "batch_size=0"), (("--batch-size", "-1"), "batch_size=-1"),
    (("--train-pictures", "-1"), "train=-1, test=0 pictures"), (("--pictures", "-1"), "pictures=-1"),
    (("--test-pictures", "-1"), "train=0, test=-1 pictures"), (("--data", "nowhere"), "nowhere")])
def test_bad_value_is_one_line_that_names_it(evaluate, options, told):
    code, out, err = evaluate(*options)
    assert (code, out, len(err)) == (2, [], 1), err
    assert err[0].startswith("thesis: error: ")
    assert told in err[0]


@pytest.mark.parametrize(("options", "told"), [
    (("--layers", "a"), "--layers: 'a': needs numbers such as 2,3"),
    (("--crop", "x"), "--crop: 'x': needs int or none"), (("--seeds", "x"), "--seeds: invalid int"),
    (("--projection", "1.5"), "--projection: '1.5': needs int or none"), (("--bogus", "1"), "--bogus"),
    (("--image-size", "none"), "--image-size: 'none': needs int"),
    (("--tiles", "2"), "--tiles: '2': needs two numbers such as 256x640 or none"),
    (("--image-size", "256x"), "--image-size: '256x': needs int or two numbers such as 256x640"),
    (("--image-size", "64x64x64"), "--image-size: '64x64x64': needs int or two numbers such as 256x640"),
    (("--memory-limit-gb", "x"), "--memory-limit-gb: 'x': needs float or none")])
def test_option_that_cannot_be_read_ends_with_its_name(evaluate, options, told):
    code, out, err = evaluate(*options)
    assert (code, out) == (2, [])
    assert told in err[-1]


@pytest.mark.parametrize(("option", "value"), [("repeats", 0), ("pictures", 0), ("warmup", -1)])
def test_bad_protocol_is_one_line(evaluate, option, value):
    code, _, err = evaluate(f"--{option}", value, command="time")
    assert (code, len(err)) == (2, 1)
    assert f"{option}={value}" in err[0]


@pytest.mark.parametrize(("annotation", "text", "value"), [
    (int | None, "None", None), (int | None, "3", 3), (int | str, "1%", "1%"), (int | str, "7", 7),
    (str, "none", "none"), (tuple[int, ...], "2,3", (2, 3)), (int | tuple[int, int], "256x640", (256, 640)),
    (int | tuple[int, int], "64", 64), (float | None, "0.5", 0.5)])
def test_text_becomes_the_type_of_the_field(annotation, text, value):
    assert methods.converter(annotation)(text) == value


def test_text_of_no_type_is_refused():
    with pytest.raises(argparse.ArgumentTypeError, match="'x': needs int or none"):
        methods.converter(int | None)("x")


def test_unknown_category_lists_those_there_are(thesis, make_category):
    make_category("bolt")
    code, _, err = thesis("evaluate", "patchcore", "--data", make_category(), "--category", "nut", *TINY)
    assert code == 2
    assert len(err) == 1
    assert "nut: no such category; categories here: bolt, pad" in err[0]


def test_folder_without_a_category(thesis, tmp_path):
    code, _, err = thesis("evaluate", "patchcore", "--data", tmp_path, "--category", "all", *TINY)
    assert (code, len(err)) == (2, 1)
    assert "holds no category" in err[0]


def test_several_categories_and_their_mean(thesis, make_category):
    make_category("bolt", seed=1)
    where = ("--data", make_category(), "--category", "all")
    code, out, _ = thesis("evaluate", "patchcore", *where, *TINY, "--seeds", 1, "--json")
    answer = json.loads(out[-1])
    each = [one["image_auroc"] for one in answer["categories"]]
    assert code == 0 and len(each) == 2 and answer["failed"] == []
    assert answer["image_auroc"] == pytest.approx(sum(each) / 2)
    assert f"mean of 2 categories: image AUROC {50 * sum(each):.1f} %" in out


def test_each_category_is_timed_with_a_detector_of_its_own(thesis, make_category, monkeypatch):
    """Also when all AUROC rows are stored, so that only the timing has to fit."""
    make_category("bolt", seed=1)
    command = ("evaluate", "patchcore", "--data", make_category(), "--category", "all", *TINY, "--seeds", 1)
    thesis(*command)
    fitted, genuine = [], PatchCore.gather
    monkeypatch.setattr(PatchCore, "gather", lambda self, maps: fitted.append(maps.samples[0].path.parts[-4])
                        or genuine(self, maps))
    code, _, _ = thesis(*command, "--pictures", 1)
    assert (code, fitted) == (0, ["bolt", "pad"])


@pytest.mark.parametrize("asked", [("all",), ("pad", "bolt")])
def test_broken_picture_stops_its_category_only(thesis, make_category, asked):
    root = make_category("bolt")
    (make_category() / "bolt/test/hole/001.png").write_bytes(b"broken")
    where = ["--data", root, *(part for name in asked for part in ("--category", name))]
    code, out, err = thesis("evaluate", "patchcore", *where, *TINY, "--seeds", 1, "--json")
    answer = json.loads(out[-1])
    assert code == 1
    assert answer["failed"] == ["bolt"]
    assert [one["category"] for one in answer["categories"]] == ["pad"]
    (line,) = [line for line in err if line.startswith("thesis: ")]
    assert "bolt/test/hole/001.png: not a readable picture" in line


def test_all_takes_every_category_and_fits_on_each(thesis, make_category, monkeypatch):
    fitted, genuine = [], PatchCore.gather
    monkeypatch.setattr(PatchCore, "gather", lambda self, maps: fitted.append(maps.samples[0].path.parts[-4])
                        or genuine(self, maps))
    make_category("bolt")
    where = ("--data", make_category(), "--category", "all")
    code, out, _ = thesis("time", "patchcore", *where, *TINY, "--pictures", 1, "--json")
    assert code == 0
    assert [one["category"] for one in json.loads(out[-1])["categories"]] == fitted == ["bolt", "pad"]


def test_every_broken_category_is_named_and_nothing_was_done(thesis, make_category):
    root = make_category("bolt")
    (root / "bolt/train/good/001.png").write_bytes(b"broken")
    where = ("--data", root, "--category", "bolt", "--category", "nut")
    code, out, err = thesis("evaluate", "patchcore", *where, *TINY, "--seeds", 1, "--json")
    assert (code, json.loads(out[-1])) == (2, {"categories": [], "failed": ["bolt", "nut"]})
    bolt, nut = [line for line in err if line.startswith("thesis: ")]
    assert "bolt/train/good/001.png: not a readable picture" in bolt and "nut: no such category" in nut


@pytest.fixture
def bundle(thesis, make_category, tmp_path):
    """Folder that `thesis export` wrote, of one tiny category."""
    where = ("--data", make_category(train=5), "--category", "pad")
    out = tmp_path / "bundle"
    few = ("--calibration", 2, "--false-alarms", "20%")
    assert thesis("export", "patchcore", *where, *TINY, *few, "--out", out)[0] == 0
    return out


def test_detect_tells_some_unreadable_pictures_from_all(thesis, bundle, tmp_path):
    (broken := tmp_path / "broken.png").write_bytes(b"no picture")
    fine = bundle / "pictures" / "00_good.png"
    for pictures, code, scored in (((fine,), 0, 1), ((broken, fine), 1, 1), ((broken, tmp_path / "absent.png"), 2, 0)):
        given = thesis("detect", bundle, *pictures)
        assert (given[0], len(given[1]), len(given[2])) == (code, scored, len(pictures) - scored)
        assert all(line.startswith("thesis: ") and "not a readable picture" in line for line in given[2])


# ---- what goes wrong: the user's part in one line, ours with its traceback

def test_what_the_user_can_mend_is_one_line(evaluate, monkeypatch):
    def refuse(*args, **kwargs):
        raise ThesisError("bank=9: needs more patches")
    monkeypatch.setattr(scores, "evaluate", refuse)
    assert evaluate() == (2, [], ["thesis: error: bank=9: needs more patches"])


def test_a_file_that_cannot_be_written_is_one_line(evaluate, monkeypatch, tmp_path):
    (outputs := tmp_path / "a file").write_text("no folder")
    monkeypatch.setenv("THESIS_OUTPUTS", str(outputs))
    code, out, err = evaluate()
    errors = [line for line in err if line.startswith("thesis: ")]
    assert (code, out, len(errors)) == (2, [], 1) and "Traceback" not in "".join(err)
    assert errors[0].startswith(f"thesis: error: {outputs}") and errors[0].endswith(": Not a directory")


def test_a_defect_shows_its_traceback(evaluate, monkeypatch):
    """The search multiplies matrices that do not fit: a ValueError, but nothing that the user could mend."""
    monkeypatch.setattr(search, "nearest", lambda vectors, bank, k=1: np.matmul(vectors, bank))
    code, out, err = evaluate("--search", "numpy")
    assert (code, out) == (3, [])
    assert "Traceback (most recent call last):" in err
    assert any(line.startswith("ValueError: matmul: ") for line in err)
    (line,) = [line for line in err if line.startswith("thesis: ")]
    assert line == err[-1] and "this is a defect of thesis_lib and not of your input" in line


def test_an_error_of_the_system_that_names_no_file_is_a_defect(evaluate, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no name")
    monkeypatch.setattr(scores, "evaluate", fail)
    code, _, err = evaluate()
    assert code == 3 and "OSError: no name" in err and "defect" in err[-1]


def test_interrupt_is_130(evaluate, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt
    monkeypatch.setattr(scores, "evaluate", stop)
    code, _, err = evaluate()
    assert (code, len(err)) == (130, 1)


WINDOWS = """
import sys
import numpy, PIL.Image, psutil, threadpoolctl      # those of a real Windows look at the platform, too
sys.platform = "win32"
sys.modules["resource"] = None                      # Windows has none
from thesis_lib.commands.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("arguments", [("doctor",), ("--help",), ("evaluate", "patchcore"), ("measure", "bundle")])
def test_windows_is_told_what_is_supported(arguments):
    done = subprocess.run([sys.executable, "-c", WINDOWS, *arguments], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("thesis: error: runs on Linux and macOS; on Windows") and "WSL 2" in line


@pytest.fixture
def sets(make_category):
    """A data set under data/, where `thesis data` looks by itself."""
    make_category("bolt", bad=0, size=32)
    paths.data().mkdir()
    make_category(masks=False, size=32).rename(paths.data() / "mine")
    return paths.data() / "mine"


def test_data_list(thesis, sets):
    code, out, _ = thesis("data", "list")
    assert code == 0
    assert out == [str(sets), "  bolt: 4 train, 3 good and 0 anomalous test pictures (no defect), no masks",
                   "  pad: 4 train, 3 good and 3 anomalous test pictures (hole), no masks"]
    assert thesis("data", "list", "--data", "mine")[1] == out


def test_data_verify(thesis, sets):
    assert thesis("data", "verify")[0] == 0
    (sets / "pad/train/good/000.png").write_bytes(b"broken")
    code, out, _ = thesis("data", "verify", "--data", sets)
    assert code == 1
    assert any("pad" in line and "000.png: not a readable picture" in line for line in out)


def test_data_list_of_nothing_says_what_to_do(thesis):
    code, _, err = thesis("data", "list")
    assert (code, len(err)) == (2, 1)
    assert "thesis data demo" in err[0]


def test_data_demo(thesis, monkeypatch):
    monkeypatch.setattr(synthetic, "write", lambda root: root)
    assert thesis("data", "demo")[:2] == (0, [str(paths.demo_data())])


def test_doctor_is_well(thesis, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", {"sum": "print(1 + 1)"})
    code, out, _ = thesis("doctor")
    assert code == 0
    assert out[0] == "ok    sum: 2"
    assert any(str(paths.data()) in line for line in out)
    assert any(torch.__version__.partition("+")[0] in line for line in out)


def test_doctor_of_a_device_looks_at_what_a_bundle_needs(thesis, monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    code, out, _ = thesis("doctor")
    assert code == 0
    assert [line.partition(":")[0] for line in out[:3]] == ["ok    numpy", "ok    onnxruntime", "none  torch"]


@pytest.mark.slow
def test_doctor_checks_of_this_machine(thesis):
    code, out, _ = thesis("doctor")
    assert code == 0
    assert [line.split(":")[0] for line in out[:len(doctor.CHECKS)]] == [f"ok    {name}" for name in doctor.CHECKS]


@pytest.mark.parametrize(("code", "reason"), [
    (f"torch = 'torch'; import os; os.kill(os.getpid(), {int(signal.SIGILL)})",
     "killed by SIGILL: .*instructions that the processor lacks; a device needs no torch: .* Raspberry Pi 4 "),
    (f"import os; os.kill(os.getpid(), {int(signal.SIGILL)})", "killed by SIGILL: .* that the processor lacks$"),
    (f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})", "killed by SIGKILL$"),
    ("import no_such_module_at_all", "ModuleNotFoundError.*no_such_module"), ("exit(3)", "no message")])
def test_doctor_reports_a_child_that_dies(thesis, monkeypatch, code, reason):
    monkeypatch.setattr(doctor, "CHECKS", {"broken": code, "fine": "print('lives')"})
    exit_code, out, _ = thesis("doctor")
    assert exit_code == 1
    assert out[1] == "ok    fine: lives"
    (line,) = [line for line in out if line.startswith("FAIL")]
    assert re.search(f"^FAIL  broken: {reason}", line)


@pytest.mark.parametrize(("package", "version", "told"), [
    ("torch", "2.10.0+cpu", "torch 2.10.0: .* install that of constraints.txt .*, or none: a device needs no torch"),
    ("onnxruntime", "1.21.0", r"onnxruntime 1.21.0: .* \(pip install -c constraints.txt onnxruntime\)$")])
def test_doctor_names_a_version_that_dies_on_a_pi(thesis, monkeypatch, package, version, told):
    """Whether it dies here is what its own check says, so the exit code is that of the checks."""
    monkeypatch.setattr(doctor, "CHECKS", {"sum": "print(1 + 1)"})
    monkeypatch.setattr(doctor.identity, "version_of", lambda name: version if name == package else "1.22.0")
    for machine, lines in (("x86_64", 0), ("aarch64", 1)):
        monkeypatch.setattr(doctor.platform, "machine", lambda name=machine: name)
        assert len(doctor.known()) == lines
    with monkeypatch.context() as patch:
        patch.setattr(doctor.stamp, "show", lambda facts: None)
        code, out, _ = thesis("doctor")
    (line,) = [line for line in out if line.startswith("note")]
    assert code == 0 and re.search(f"^note  {told}", line) and "dies of an illegal instruction" in line
    monkeypatch.setattr(doctor.identity, "version_of", lambda name: {"torch": "2.11.0", "onnxruntime": "1.22.1"}[name])
    assert doctor.known() == []


def test_run_wants_name_and_value(thesis):
    code, _, err = thesis("run", "-p", "seeds")
    assert (code, err) == (2, ["thesis: error: -p seeds: needs name=value"])


@pytest.mark.parametrize(("states", "code"), [
    (["done", "skipped"], 0), (["done", "failed"], 1), (["failed", "interrupted"], 130),
    (["done", "not started"], 130)])
def test_run_exit_code_follows_the_outcomes(thesis, monkeypatch, states, code):
    seen = {}
    monkeypatch.setattr(plan, "plan", lambda profile, **how: seen.update(profile=profile, **how))
    monkeypatch.setattr(runner, "run", lambda tasks, **how: seen.update(how) or
                        [argparse.Namespace(state=state) for state in states])
    monkeypatch.setattr(forecast, "estimate", lambda tasks, **_: "the estimate")
    monkeypatch.setattr(runner, "table", lambda outcomes: "the table")
    options = ("--profile", "smoke", "--only", "07", "-p", "seeds=1", "-p", "category=a=b", "--jobs", 2)
    assert thesis("run", *options)[:2] == (code, ["the estimate", "the table"])
    assert seen == {"profile": "smoke", "only": ["07"], "overrides": {"seeds": "1", "category": "a=b"},
                    "jobs": 2, "scheduler": None, "force": False}


def child(*arguments):
    return subprocess.run([sys.executable, "-m", "thesis_lib.commands.main", *map(str, arguments)],
                          capture_output=True, text=True, timeout=120)


def test_as_a_program(make_category):
    where = ("--data", make_category(), "--category", "pad")
    done = child("evaluate", "patchcore", *where, *TINY, "--seeds", 1, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["category"] == "pad"
    assert "Traceback" not in done.stderr
    assert len(list(paths.results().glob("auroc-*.json"))) == 1


def test_as_a_program_that_fails(tmp_path):
    (tmp_path / "pad/train/good").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "pad/train/good/0.png")
    done = child("evaluate", "patchcore", "--data", tmp_path, "--category", "pad", *TINY, "--bank", "x")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("thesis: error: bank='x': needs a number of rows")


# ---- what happens to the output

COMMANDS = {"help": "--help", "list": "data list --data {root}", "verify": "data verify --data {root}",
            "evaluate": "evaluate patchcore --data {root} --category pad --json --seeds 1 " + " ".join(TINY)}


def piped(command, root, rest, unbuffered=""):
    """Exit code of the command, and its error output without progress, in a shell with something behind it."""
    line = f"{sys.executable} -m thesis_lib.commands.main {COMMANDS[command].format(root=root)} {rest}"
    done = subprocess.run(["bash", "-c", line + "; exit ${PIPESTATUS[0]}"], capture_output=True, text=True,
                          env=os.environ | {"PYTHONUNBUFFERED": unbuffered})
    return done.returncode, [line for line in done.stderr.splitlines() if not re.match(r"(features|coreset): ", line)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_output_ends_quietly(command, make_category):
    assert piped(command, make_category(), "| true") == (exit_codes.CLOSED, [])


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_to_a_full_disk_is_one_line(command, make_category):
    code, err = piped(command, make_category(), "> /dev/full")
    assert code == 2 and err == ["thesis: error: standard output: No space left on device"]


@pytest.mark.parametrize(("rest", "code", "lines"), [("| true", exit_codes.CLOSED, 0), ("> /dev/full", 2, 1)])
def test_an_output_that_is_not_buffered_ends_so_too(make_category, rest, code, lines):
    """Then it is printing that fails, in the middle of the work."""
    ended, err = piped("list", make_category(), rest, "1")
    assert ended == code and len(err) == lines and all("No space left on device" in line for line in err)


def test_no_output_at_all_is_no_fault(make_category):
    assert piped("list", make_category(), ">&-") == (0, [])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_under_a_file_without_a_name_is_one_line(thesis, monkeypatch, number):
    """Feature maps lie in unnamed files: Python cannot say which file it was."""
    def full(args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(main, "_data", full)
    code, _, err = thesis("data", "list")
    assert code == 2 and len(err) == 1 and err[0].startswith(f"thesis: error: {os.strerror(number)}: make room")


# ---- names of good parts, depth of files

def test_good_name_and_levels_are_options(thesis, make_category):
    root = make_category(train=5)
    for split in ("train", "test"):
        (root / "pad" / split / "good").rename(root / "pad" / split / "OK")
    where = ("--data", root, "--category", "pad")
    code, _, err = thesis("evaluate", "patchcore", *where, *TINY, "--seeds", 1)
    assert code == 2 and "call it good, or give --good-name OK" in err[0]
    for category in ("pad", "all"):
        where = ("--data", root, "--category", category, "--good-name", "OK")
        assert thesis("evaluate", "patchcore", *where, *TINY, "--seeds", 1, "--levels", "full")[0] == 0
    assert thesis("data", "list", "--data", root)[0] == 2
    assert "3 good and 3 anomalous" in thesis("data", "list", "--data", root, "--good-name", "OK")[1][1]
    code, _, err = thesis("evaluate", "patchcore", *where, *TINY, "--levels", "12bit")
    assert code == 2 and err == ["thesis: error: levels='12bit': needs auto, full or a number from 2 to 65536"]


def test_verify_prints_problems_and_notes_below_the_table(thesis, make_category):
    root = make_category()
    (root / "pad/train/good/.hidden.png").touch()
    Image.new("L", (64, 64), 200).save(root / "pad/train/good/x.tif", save_all=True,
                                       append_images=[Image.new("L", (64, 64))])
    code, out, err = thesis("data", "verify", "--data", root)
    assert (code, err) == (0, []) and out[-1] == "pad: note: files of several pages, of which the first is read: 1"
    assert out[1].split() == ["category", "train", "test_good", "test_defective", "masks", "bits", "maximum", "levels",
                              "ignored"]
    assert out[2].split() == ["pad", "5", "3", "3", "3", "8", "255", "256", "1"]
    (root / "pad/train/good/x.tif").write_bytes(b"broken")
    code, out, _ = thesis("data", "verify", "--data", root)
    assert code == 1 and out[-1].startswith("pad: ") and "x.tif: not a readable picture" in out[-1]

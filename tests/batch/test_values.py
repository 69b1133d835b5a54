"""What a parameter may be: sets that comments list agree with the library, and what cannot be is refused at once."""

import json
import re

import pytest
import yaml

from tests.batch.test_run import profile, tasks_of, write
from thesis_lib.batch import run as runner
from thesis_lib.batch import values
from thesis_lib.batch.plan import files_of, parameters_of, pictures_below, plan
from thesis_lib.batch.values import BatchError, choices, listed
from thesis_lib.core import paths
from thesis_lib.core.errors import ThesisError
from thesis_lib.core.preprocess import SUFFIXES
from thesis_lib.data import synthetic
from thesis_lib.evaluation import on_pi
from thesis_lib.evaluation.bars import thesis_bars
from thesis_lib.evaluation.study import DEVICES
from thesis_lib.evaluation.thesis import NETWORKS
from thesis_lib.methods import trained
from thesis_lib.networks import backbones, engines, patchnets, weightfiles
from thesis_lib.patches import coreset, embedding

NOTEBOOKS = sorted(paths.notebooks().glob("*.ipynb"))
FILE, FOLDER = "a .safetensors file", "a folder of photographs"


@pytest.mark.parametrize(("comment", "words", "in_words"), [
    ("", [], None), ("pixels, 256 in the paper", [], None), ("one|two", [], None), ("of it: a | b", ["a", "b"], None),
    ("eager | fast | int8; int8 is last", ["eager", "fast", "int8"], None), ("3.4 | 3.5, bars", ["3.4", "3.5"], None),
    ("rows, N | N%, as drawn", ["N", "N%"], None), ("none | a folder of photographs; no", ["none"], FOLDER),
    ("x | y | a .safetensors file (of one)", ["x", "y"], FILE), ("pdn | an | b: what", ["pdn", "an", "b"], None)])
def test_what_a_comment_lists(comment, words, in_words):
    assert choices(comment) == (words, in_words)


@pytest.mark.parametrize(("comment", "value"), [
    ("a | b", "b"), ("1 | 2", 2), ("1 | 2", [2, 1]), ("1 | 2", []), ("N | N%", ["1000", "0.1%", 5]), ("a | b", None),
    ("identity | avg_kN_sN_pN", "avg_k3_s12_p1"), ("anything", "goes")])
def test_what_is_listed_is_taken(comment, value):
    assert listed("x", value, comment) == value


@pytest.mark.parametrize(("comment", "value", "told"), [
    ("eager | fast", "fsat", "x: needs eager | fast, not 'fsat'; did you mean fast?"),
    ("eager | fast", "gpu", "x: needs eager | fast, not 'gpu'"), ("1 | 2", 3, "x: needs 1 | 2, not 3"),
    ("1 | 2", [1, 7], "x: needs 1 | 2, not 7"), ("N | N%", ["x%"], "x: needs N | N%, not 'x%'"),
    ("avg_kN | identity", "avg_k", "x: needs avg_kN | identity, not 'avg_k'; did you mean avg_kN?"),
    ("avg_kN | identity", "avg_kN", "x: needs avg_kN | identity, not 'avg_kN'; did you mean avg_kN?"),
    ("avg_kN | identity", "avg_k3_s1", "x: needs avg_kN | identity, not 'avg_k3_s1'; did you mean avg_kN?"),
    ("a.b | c", "axb", "x: needs a.b | c, not 'axb'; did you mean a.b?"),
    (values.WEIGHTS, "imagenet2", "x: needs bundled | imagenet | random | a .safetensors file that exists, not "
                                  "'imagenet2'; did you mean imagenet?")])
def test_what_is_not_listed_is_refused_with_the_nearest(comment, value, told):
    with pytest.raises(BatchError) as caught:
        listed("x", value, comment)
    assert str(caught.value) == told


def test_a_file_or_folder_counts_where_it_is_there_and_by_its_whole_path(tmp_path, monkeypatch):
    """A notebook runs in another folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").touch()
    (tmp_path / "w.pth").touch()
    (tmp_path / "photos").mkdir()
    assert listed("x", "w.safetensors", f"random | {FILE}") == str(tmp_path / "w.safetensors")
    assert listed("x", "photos", f"none | {FOLDER}") == str(tmp_path / "photos")
    for value, comment in (("w.pth", FILE), ("v.safetensors", FILE), ("photos", FILE), ("w.pth", FOLDER),
                           ("no", FOLDER)):
        with pytest.raises(BatchError, match=f"not '{value}'"):
            listed("x", value, f"random | {comment}")


PARAMETERS = 'data: str = "set"\ncategory: str = "nut"\nweights: str = "bundled"\nengine: str = "fast"  # eager | fast'


@pytest.fixture
def folder(tmp_path):
    """One notebook, and its pictures: the categories bolt and nut below data/set."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write(folder, "01_one", "print(data, category, weights, engine)", parameters=PARAMETERS)
    profile(folder)
    for name in ("bolt", "nut"):
        (tmp_path / "data" / "set" / name / "train" / "good").mkdir(parents=True)
    return folder


WRONG = [({"category": "Nut"}, "data=set has no category 'Nut'; did you mean nut?"),
         ({"category": "screw"}, "data=set has no category 'screw'; there are: bolt, nut"),
         ({"data": "sett"}, "has no folder 'sett'; did you mean set?"),
         ({"data": "x"}, "no folder 'x'; there are: demo, set"),
         ({"data": "demo"}, "data=demo has no category 'nut'; there are: bracket, granulate, weave"),
         ({"data": "demo", "category": "Weave"}, "data=demo has no category 'Weave'; did you mean weave?"),
         ({"weights": "imagenet2"}, "needs bundled | imagenet | random | a .safetensors file that exists, not "
                                    "'imagenet2'; did you mean imagenet?"),
         ({"weights": "w.safetensors"}, "a .safetensors file that exists, not 'w.safetensors'"),
         ({"engine": "eagre"}, "needs eager | fast, not 'eagre'; did you mean eager?")]


@pytest.mark.parametrize(("given", "told"), WRONG)
def test_typed_values_that_cannot_be_are_refused(folder, given, told):
    with pytest.raises(ThesisError) as caught:
        tasks_of(folder, overrides=given)
    assert str(caught.value).startswith("-p") and "01_one: " in str(caught.value) and str(caught.value).endswith(told)


@pytest.mark.parametrize(("given", "told"), WRONG)
def test_those_of_a_profile_are_refused_before_the_start(folder, given, told):
    """Its pictures by the dry run and by the run, since a batch may be planned for another machine; others at once."""
    profile(folder, notebooks={"01_one": given})
    if given.keys() & {"weights", "engine"}:
        with pytest.raises(BatchError, match=re.escape(told)):
            tasks_of(folder)
        return
    tasks, lines = tasks_of(folder), []
    for call in (runner.describe, lambda tasks: runner.run(tasks, report=lines.append)):
        with pytest.raises(BatchError, match=re.escape(told)):
            call(tasks)
    assert lines == [] and not tasks[0].output.parent.exists()


@pytest.mark.parametrize("given", [{"category": "bolt"}, {"data": "demo", "category": "bracket"}, {"weights": "random"},
                                   {"engine": "eager"}])
def test_what_is_there_is_taken(folder, given):
    (task,) = tasks_of(folder, overrides=given)
    assert task.effective == {"data": "set", "category": "nut", "weights": "bundled", "engine": "fast"} | given
    assert "would run" in runner.describe([task])
    assert not (paths.data() / "demo").exists(), "its categories are known without it"


def test_a_folder_without_a_category_and_every_one_of_several(folder):
    (paths.data() / "empty").mkdir()
    with pytest.raises(ThesisError, match="empty: holds no category"):
        tasks_of(folder, overrides={"data": "empty"})
    write(folder, "01_one", "print(data, categories)", parameters='data: str = "set"\ncategories: list = []')
    assert tasks_of(folder, overrides={"categories": "[nut, bolt]"})[0].parameters["categories"] == ["nut", "bolt"]
    with pytest.raises(BatchError, match=r"data=set has no category 'bold'; did you mean bolt\?"):
        tasks_of(folder, overrides={"categories": "[nut, bold]"})


@pytest.mark.parametrize(("given", "told"), [
    ({"image_size": "16"}, "-p, 01_one: image_size=16: needs at least 32 pixels"),
    ({"crop": "99"}, "-p, 01_one: crop=99: needs 32 to image_size=64 pixels"),
    ({"backbone": "resnet34"}, "-p, 01_one: weights=bundled: there are none for 'resnet34'; did you mean resnet18?"),
    ({"profile": "smok"}, "-p profile, 01_one: there is no profile 'smok'; did you mean smoke?")])
def test_values_that_do_not_go_together(folder, given, told):
    write(folder, "01_one", "1", parameters='image_size: int = 64\ncrop: int = 0\nbackbone: str = "resnet18"\n'
                                            'weights: str = "bundled"\nprofile: str = "smoke"')
    assert len(tasks_of(folder)) == 1
    with pytest.raises(BatchError) as caught:
        tasks_of(folder, overrides=given)
    assert str(caught.value).startswith(told)


def test_of_pictures_all_kinds_are_counted_and_no_hidden_one(tmp_path):
    """Every ending that is read, in any case; masks, previews and what a file browser leaves behind are no pictures."""
    good = tmp_path / "data/set/pad/train/good"
    good.mkdir(parents=True)
    names = [f"{number}{ending}" for number, suffix in enumerate(sorted(SUFFIXES))
             for ending in (suffix, suffix.upper())]
    for name in [*names, "._0.png", "notes.txt", "0.pngx", "bmp"]:
        (good / name).touch()
    for place in ("pad/ground_truth/hole", "pad/test/hole", ".thumbs/pad"):
        (tmp_path / "data/set" / place).mkdir(parents=True)
        (tmp_path / "data/set" / place / "000.jpeg").touch()
    assert len(names) == 12 and pictures_below("set") == pictures_below(str(tmp_path / "data/set")) == 12 + 1
    assert pictures_below("nowhere") == 0
    (tmp_path / "data/linked").mkdir()
    (tmp_path / "data/linked/pad").symlink_to(tmp_path / "data/set/pad")
    before = files_of({"data": "linked"})
    assert pictures_below("linked") == 12 + 1
    (good / "one_more.png").touch()
    assert files_of({"data": "linked"}) != before, "a picture more behind a link goes unnoticed"


# ---- the notebooks of the project

@pytest.fixture(params=NOTEBOOKS, ids=lambda file: file.stem)
def declared(request):
    """Parameters of one of the notebooks: (default, type, comment) by name."""
    return parameters_of(request.param)


def test_every_default_is_one_that_its_comment_lists(declared):
    for name, (default, _, comment) in declared.items():
        assert listed(name, default, comment) == default


def test_listed_values_are_those_of_the_library(declared):
    """Each set whole, or as much of it as a notebook takes; a name that is misspelt in a comment shows here."""
    known = {"backbone": set(backbones.NAMES), "weights": {"bundled", "imagenet", "random"},
             "engine": set(engines.ENGINES), "precision": set(trained.PRECISIONS),
             "layers": set("1234"), "level": set("1234"), "pooled": set("01234"),
             "patch_sizes": set(map(str, patchnets.LAYERS)), "source": {"procedural", "nominal"},
             "penalty": {"none", "procedural"}, "origin": {"own", "published"}, "device": set(DEVICES),
             "runtime": {name for name, _ in on_pi.SERIES}, "runtime_precision": {name for _, name in on_pi.SERIES},
             "sizes": {name.removeprefix("ConvNeXt-") for name in NETWORKS if "ConvNeXt" in name}}
    whole = {"engine", "precision", "layers", "level", "pooled", "patch_sizes", "source", "penalty", "origin", "sizes",
             "device", "runtime", "runtime_precision"}
    for name, (_, _, comment) in declared.items():
        words, in_words = choices(comment)
        if name in known:
            assert words and set(words) <= known[name] and (set(words) == known[name] or name not in whole), name
            said = {"weights": (FILE, "a folder of networks"), "source": (FOLDER,), "penalty": (FOLDER,)}
            assert in_words in said.get(name, (None,)), name
        elif name == "embedding":
            for word in words:
                embedding.parse(word.replace("N", "3").replace("p3", "p1"))
            assert len(words) == 6
        elif name == "banks":
            assert [coreset.size(word.replace("N", "7"), 100) for word in words] == [7, 7]
        elif name in ("figures_of", "transforms_of"):
            assert words and all(thesis_bars(figure, "random") for figure in words)
        else:
            assert not words, f"{name}: add it to this test"


def test_bundled_weights_are_told_from_their_files():
    for name in backbones.NAMES:
        given = {"weights": "bundled", "backbone": name}
        if name in weightfiles.BUNDLED:
            values.check_together("x", given)
        else:
            with pytest.raises(BatchError, match=f"there are none for '{name}'"):
                values.check_together("x", given)
        values.check_together("x", given | {"weights": "imagenet"})


@pytest.mark.parametrize(("only", "given", "told"), [
    ("07", {"category": "Weave"}, "did you mean weave?"), ("07", {"weights": "imagenet2"}, "did you mean imagenet?"),
    ("07", {"backbone": "resnet81"}, "did you mean resnet18?"),
    ("05", {"embedding": "avg_k3_s2"}, "did you mean avg_kN_sN_pN?"),
    ("07", {"backbone": "resnet34"}, "there are none for 'resnet34'"), ("17", {"engine": "fsat"}, "did you mean fast?"),
    ("13", {"backbone": "resnet18"}, "needs pdn_small | pdn_medium"),
    ("13", {"weights": "imagenet"}, "needs bundled | random"),
    ("12", {"source": "nominl"}, "did you mean nominal?"), ("14", {"precision": "float16"}, "did you mean bfloat16?"),
    ("03", {"layers": "[2, 5]"}, "needs 1 | 2 | 3 | 4, not 5"), ("09", {"transforms_of": '["3.2"]'}, "not '3.2'"),
    ("16", {"origin": "pubished"}, "did you mean published?"), ("00", {"profile": "dmo"}, "did you mean demo?"),
    ("05", {"image_size": "31"}, "needs at least 32 pixels"), ("06", {"crop": "300"}, "needs 32 to image_size=256")])
def test_wrong_values_for_the_notebooks(only, given, told):
    with pytest.raises(BatchError, match=re.escape(told)):
        plan("demo", only=[only], overrides=given)


def test_a_value_that_is_right_for_the_others_alone_is_left_out_aloud(caplog):
    tasks = {task.name: task.effective["weights"] for task in plan("demo", overrides={"weights": "imagenet"})
             if "weights" in task.effective}
    kept = {"13_efficientad": "bundled | random | a .safetensors file",
            "19_real_pictures": "bundled | a folder of networks"}
    assert all(tasks.pop(name) == "bundled" for name in kept) and set(tasks.values()) == {"imagenet"}
    assert caplog.messages == [f"-p weights, {name}: needs {right} that exists, not 'imagenet'; this notebook keeps "
                               "its own" for name, right in kept.items()]
    with pytest.raises(BatchError, match="did you mean imagenet"):
        plan("demo", overrides={"weights": "imagenet2"})            # right for none


def test_demo_pictures_are_known_before_they_are_made():
    tasks = plan("demo", overrides={"category": "weave"})
    assert len(tasks) == len(NOTEBOOKS) and "would run" in runner.describe(tasks)
    assert set(synthetic.CATEGORIES) == {"granulate", "weave", "bracket"} and not paths.demo_data().exists()


def test_the_dry_run_of_every_profile_says_whether_pictures_are_here():
    profiles = yaml.safe_load((paths.notebooks() / "runs.yml").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(list(profiles))) == ["smoke", "demo", "mvtec", "real", "pi"]
    for name in profiles:
        if name == "mvtec":
            with pytest.raises(BatchError, match=r"data: .* has no folder 'mvtec_ad'"):
                runner.describe(plan(name))
        else:
            assert runner.describe(plan(name))

"""First results: a page that needs nothing but itself, with the number that `evaluate` gives."""

import base64
import re
from io import BytesIO

import pytest
from PIL import Image

from thesis_lib.commands.main import main
from thesis_lib.core import paths
from thesis_lib.data import Preprocess, scan, synthetic
from thesis_lib.evaluation import evaluate
from thesis_lib.methods import PatchCore
from thesis_lib.report import quick, tables


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder of outputs, folder of data, lines on the terminal) of `thesis quick` on a few pictures."""
    outputs, data = tmp_path_factory.mktemp("outputs"), tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as shown:
        patch.setenv("THESIS_OUTPUTS", str(outputs))
        patch.setenv("THESIS_DATA", str(data))
        patch.setattr(quick, "PICTURES", {"train": 4, "good": 3, "defective": 3})
        lines = []
        shown.setattr("builtins.print", lambda text="", **_: lines.extend(str(text).splitlines()))
        assert main(["quick"]) == 0
    return outputs, data, lines


@pytest.fixture
def at_home(made, monkeypatch):
    outputs, data, lines = made
    monkeypatch.setenv("THESIS_OUTPUTS", str(outputs))
    monkeypatch.setenv("THESIS_DATA", str(data))
    return (paths.quick() / "index.html").read_text(encoding="utf-8"), lines


def test_the_page_needs_nothing_but_itself(at_home):
    page, _ = at_home
    assert "href" not in page and "http" not in page and "url(" not in page and "<script" not in page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert '<meta name="viewport"' in page and not re.search(r"[{}]{2}", page)


def test_the_number_is_that_of_evaluate(at_home, monkeypatch):
    """Measured again on the pictures that lie there; the page and the terminal say the same."""
    page, lines = at_home
    monkeypatch.setenv("THESIS_OUTPUTS", str(paths.outputs() / "again"))
    category = scan(paths.outputs().parent / "quick/bracket", "bracket")
    rows = evaluate(PatchCore(layers=(1,), weights="bundled"), category, Preprocess(), seeds=1, pixels=False)
    line = tables.summary(rows).iloc[0]
    assert f"Image AUROC {line['auroc']:.1f} %<" in page
    assert page.count(tables.interval(line)) == 2
    assert lines[0].startswith(f"bracket: image AUROC {line['auroc']:.1f} %, 95 % interval {tables.interval(line)} %,")
    assert lines[1].endswith("quick/index.html")


def test_it_has_three_pictures_with_their_maps_and_says_which(at_home):
    page, _ = at_home
    pictures = [Image.open(BytesIO(base64.b64decode(text))) for text in re.findall(r"base64,([^\"]+)", page)]
    assert len(pictures) == 3 == len({picture.tobytes() for picture in pictures})
    for picture in pictures:
        assert picture.height > 1.6 * picture.width, "the map lies below the picture"
    texts = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert [text.split()[0].strip(".") for text in texts] == ["Defective", "Defective", "Good"]


def test_what_is_shown_is_the_best_and_the_worst(pad):
    """Scores by hand: of three good pictures two are above the lowest defective one."""
    assert [sample.label for sample in pad.test] == [0, 0, 0, 1, 1, 1]
    shown = quick._shown(pad, [0.1, 0.6, 0.5, 0.9, 0.4, 0.8])
    assert list(shown.values()) == [3, 4, 1]
    assert "2 good ones score higher" in list(shown)[1]


def test_the_page_says_when_and_on_what_it_was_made(at_home):
    page, _ = at_home
    assert re.search(r"Made on \d\d \w+ 20\d\d, \d\d:\d\d UTC\. cpu: ", page)
    assert re.search(r"torch \d", page) and "python: 3." in page


def test_the_demo_set_is_drawn_afterwards(at_home, monkeypatch):
    """It is not there yet; what was drawn for the page lies elsewhere and is not drawn again."""
    assert not paths.demo_data().exists()
    assert synthetic.write(paths.demo_data(), train=1, good=1, defective=1, size=32).is_dir()
    monkeypatch.setattr(synthetic, "render", lambda *_, **__: pytest.fail("drawn again"))
    monkeypatch.setattr(quick, "PICTURES", {"train": 4, "good": 3, "defective": 3})
    page, _ = quick.build()
    assert page == paths.quick() / "index.html"


def test_a_category_that_there_is_not_is_one_line(capsys):
    assert main(["quick", "--category", "brackt"]) == 2
    assert capsys.readouterr().err == "thesis: error: category 'brackt': there are granulate, weave, bracket\n"
    assert not paths.quick().exists()

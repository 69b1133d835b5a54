"""The documentation site: what it refuses, and what a reader with a browser finds."""

import json
import re
import shutil
from urllib.parse import unquote, urlparse

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from thesis_lib.batch.plan import plan
from thesis_lib.batch.run import run
from thesis_lib.commands.main import main
from thesis_lib.core import paths
from thesis_lib.report import pages, site, tables

MEASURE = """
from thesis_lib.core import results
subject = {"method": "patchcore", "category": "pad", "parameters": {"layers": [2], "backbone": "resnet18"}, "seed": 0}
results.find("auroc", subject) or results.save("auroc", subject, {"image_auroc": 0.5})
print("measured")"""
DRAW = """
import matplotlib.pyplot as plt
plt.plot([0, 1])
plt.show()"""


def notebook(folder, name, title, *cells):
    head = new_code_cell("seeds: int = 5  # banks", metadata={"tags": ["parameters"]})
    made = [new_markdown_cell(f"# {title}\n\nA formula: $s = \\max_p d_p$, and [the other](07_two.ipynb).\n\n## More")]
    nbformat.write(new_notebook(cells=[*made, head, *map(new_code_cell, cells)]), folder / f"{name}.ipynb")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """(folder of two notebooks, folder of outputs where they were executed)."""
    folder, outputs = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("outputs")
    notebook(folder, "00_one", "00 One", MEASURE)
    notebook(folder, "07_two", "07 Two", DRAW)
    (folder / "runs.yml").write_text(yaml.safe_dump({"demo": {"timeout_s": 100}}), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THESIS_OUTPUTS", str(outputs))
        patch.setattr(paths, "notebooks", lambda: folder)
        outcomes = run(plan("demo"), report=lambda line: None)
        assert [outcome.state for outcome in outcomes] == ["done", "done"], outcomes
    return folder, outputs


@pytest.fixture
def at_home(executed, monkeypatch):
    folder, outputs = executed
    monkeypatch.setenv("THESIS_OUTPUTS", str(outputs))
    monkeypatch.setattr(paths, "notebooks", lambda: folder)
    return folder, outputs


@pytest.fixture(scope="module")
def built(executed):
    folder, outputs = executed
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THESIS_OUTPUTS", str(outputs))
        patch.setattr(paths, "notebooks", lambda: folder)
        return site.build("demo").parent


def test_a_record_names_the_rows_behind_the_page(at_home):
    first, second = (json.loads(task.record.read_text()) for task in plan("demo"))
    (row,) = tables.all_rows().query("origin == 'own'")["id"]
    assert first["rows"] == [row] and second["rows"] == []
    assert not list(at_home[1].rglob("*.rows"))


def test_every_page_and_row_is_there(built):
    start = (built / "index.html").read_text(encoding="utf-8")
    assert "Chapter 3, PatchCore" in start and "Chapter 2" not in start, "only chapters that have a notebook"
    (row,) = (built / "rows").glob("*.json")
    table = (built / "rows" / "00_one.html").read_text(encoding="utf-8")
    assert f'href="{row.name}"' in table and "patchcore" in table and "0.5" in table
    assert "1 result rows" in (built / "00_one.html").read_text(encoding="utf-8")
    assert not (built / "rows" / "07_two.html").exists()
    assert not re.search(r'(src|href)="https?://(?!pypi|github|arxiv|doi)[^"]*\.(js|css)"', start)


def test_a_reader_finds_the_way(built, browser):
    """From the index through every page of the navigation: no console error, picture or link that leads nowhere."""
    page, complaints, elsewhere = browser.new_page(), [], []
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith("http") and elsewhere.append(asked.url))
    page.goto((built / "index.html").as_uri())
    links = page.locator("nav.bd-links a.internal")
    seen = set()
    for target in [links.nth(number).get_attribute("href") for number in range(links.count())]:
        page.goto((built / target.partition("#")[0]).as_uri())
        seen.add(page.locator("h1").first.inner_text().strip(" #\n"))
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)"), target
        for href in page.eval_on_selector_all("a[href]", "all => all.map(one => one.href)"):
            address = urlparse(href)
            assert address.scheme != "file" or built.joinpath(unquote(address.path)).is_file(), f"{target}: {href}"
    assert {"00 One", "07 Two", "When it does not work"} <= seen
    page.goto((built / "00_one.html").as_uri())
    page.wait_for_selector("mjx-container", state="attached")           # the formula was set
    page.click("text=1 result rows")
    assert page.locator("table a").first.get_attribute("href").endswith(".json")
    page.goto((built / "search.html").as_uri() + "?q=formula")
    page.wait_for_selector("ul.search li")
    assert not complaints and not elsewhere
    page.close()


def test_a_row_that_is_gone_stops_the_build(at_home, monkeypatch):
    monkeypatch.setattr(site, "read_json", lambda file: {"rows": ["0123456789ab"]})
    with pytest.raises(site.SiteError, match=r"00_one: its result row 0123456789ab .*--only 00_one --force"):
        site.build("demo")


def test_a_stale_page_stops_the_build(at_home, capsys):
    folder, _ = at_home
    before = (folder / "07_two.ipynb").read_text()
    try:
        notebook(folder, "07_two", "07 Two, changed", DRAW)
        with pytest.raises(pages.PageError, match="07_two: stale"):
            site.build("demo")
        assert main(["docs"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    finally:
        (folder / "07_two.ipynb").write_text(before)


def test_a_broken_link_stops_the_build(at_home, monkeypatch, tmp_path):
    guides = tmp_path / "docs"
    shutil.copytree(paths.guides(), guides)
    (guides / "guides" / "bad.md").write_text("# Bad\n\n[nowhere](nowhere.md)\n", encoding="utf-8")
    monkeypatch.setattr(paths, "guides", lambda: guides)
    with pytest.raises(site.SiteError, match=r"1 faults.*nowhere"):
        site.build("demo")
